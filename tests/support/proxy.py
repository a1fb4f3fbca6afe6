"""HAProxy before gateways, with the settings of docs/how-to/high-availability.md."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from assignment_workers.devstack.ports import LOOPBACK
from tests.support.processes import wait_until
from tests.support.root import ROOT
from tests.support.servers import _listens, free_port

HAPROXY = Path("/usr/sbin/haproxy")
"""Where Debian's package has it."""
PAGE = ROOT / "docs" / "how-to" / "high-availability.md"


def configuration(gateways: Sequence[str], *, bind: str) -> str:
    """The configuration of the page, for these gateways and this address."""
    (found,) = re.findall(r"```haproxy\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    kept = [line for line in found.splitlines() if not line.strip().startswith("server ")]
    servers = [f"    server g{number} {each}" for number, each in enumerate(gateways)]
    return re.sub(r"(?m)^( *bind) .*$", rf"\1 {bind}", "\n".join([*kept, *servers, ""]))


@contextmanager
def proxy(gateways: Sequence[str], folder: Path) -> Iterator[str]:
    """The address of a proxy before gateways at these ports' addresses."""
    port = free_port()
    file = folder / "haproxy.cfg"
    file.write_text(configuration(gateways, bind=f"{LOOPBACK}:{port}"))
    with (folder / "haproxy.log").open("wb") as log:
        running = subprocess.Popen([HAPROXY, "-db", "-f", str(file)], stdout=log, stderr=log)
    try:
        wait_until(lambda: _listens(port), "the proxy")
        yield f"http://{LOOPBACK}:{port}"
    finally:
        running.kill()
        running.wait()
