"""`status --watch` shows the health again and again, and ends by Ctrl-C without a traceback."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import termios
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.commands import Forked, type_in
from tests.support.processes import wait_until
from tests.support.servers import free_port, wire

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ (Agents are .*)")


def environment(database_url: str, redis_url: str) -> dict[str, str]:
    given = {name: each for name, each in os.environ.items() if "ASSIGNMENT" not in name}
    return given | {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "TERM": "xterm"}


def test_without_a_terminal_each_change_is_a_line(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    with wire(database_url) as line:
        given = environment(line.url, redis_url)
        process = Forked(["status", "--watch"], given, output)
        try:
            wait_until(lambda: "Sequencer" in output.read_text(), "the first reading")
            line.cut()
            wait_until(lambda: "PostgreSQL: does not answer" in output.read_text(), "the change")
            os.kill(process.pid, signal.SIGINT)
            assert process.wait(20) == 1
        finally:
            process.kill()
    said = output.read_text().splitlines()
    assert [bool(LINE.fullmatch(each)) for each in said] == [True] * len(said), said
    assert len(set(said)) == len(said) < 5


def test_a_terminal_is_drawn_again_and_given_back() -> None:
    port = free_port()
    given = environment(f"postgresql://a@127.0.0.1:{port}/a", f"redis://127.0.0.1:{port}/0")
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (20, 100))
    process = subprocess.Popen(
        [sys.executable, "-m", "assignment_workers", "status", "--watch"],
        env=given,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    said = b""
    with closing(os.fdopen(master, "rb", buffering=0)) as screen:
        while len(set(re.findall(rb"\d\d:\d\d:\d\dZ, every 2 s", said))) < 2:
            said += screen.read(4096)
        drawn = said.decode().rpartition("every 2 s")[0].rpartition("\x1b[H")[2]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 1
        said += screen.read(4096)
    text = said.decode()
    assert "\x1b[?1049l" in text, "the terminal's own screen comes back"
    assert text.endswith("agents are not served, as far as is known\r\n")
    assert "Traceback" not in text
    assert "PostgreSQL: takes no connections" in text
    assert drawn.count("\n") <= 20


@pytest.mark.parametrize("words", [("status", "--watch", "--json")])
def test_it_is_for_people(words: tuple[str, ...], tmp_path: Path) -> None:
    done = type_in(words, environment("postgresql:///a", "redis://127.0.0.1:1/0"), tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "--json" in done.stderr
