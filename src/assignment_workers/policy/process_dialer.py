"""The dialer of this process, which only entry points read.

All other code gets the dialer as an argument.
"""

from __future__ import annotations

from assignment_workers.policy.dialer import Dialer

_loaded: list[Dialer] = []


def use(dialer: Dialer) -> None:
    """Make `dialer` the dialer of this process. SQL statements built before are not changed."""
    _loaded[:] = [dialer]


def loaded() -> Dialer:
    """Return the dialer of this process. Raises `RuntimeError` if none is loaded."""
    if not _loaded:
        raise RuntimeError("no dialer is loaded in this process: see dialer.loading.load")
    return _loaded[0]
