"""The dialers that tests work by: the packaged one, where it is installed, and those of `examples`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec

from assignment_workers.dialer import Dialer
from assignment_workers.dialer.loading import PACKAGED, read
from assignment_workers.policy.process_dialer import loaded, use
from tests.support.root import ROOT

EXAMPLES = ROOT / "examples"

DIALERS: dict[str, Dialer] = {
    **(
        {"claims": import_module(PACKAGED).dialer} if find_spec(PACKAGED.rpartition(".")[0]) else {}
    ),
    **{name: read(EXAMPLES / name / "dialerconfig.py") for name in ("clinic", "charity")},
}


@contextmanager
def using(dialer: Dialer) -> Iterator[None]:
    """It is the dialer of this process until then."""
    before = loaded()
    use(dialer)
    try:
        yield
    finally:
        use(before)
