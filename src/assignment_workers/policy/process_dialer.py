"""The dialer object of this process, for entry points only.

The dialer is a `Dialer` object: the dialer queues and outcomes of a call centre. Entry points, such
as the command line and the gateway's routes, read this object here. All other code gets it as an
argument.
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
