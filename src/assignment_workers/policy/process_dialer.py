"""The dialer of this process, which only entry points read; all other code is passed it."""

from __future__ import annotations

from assignment_workers.policy.dialer import Dialer
from assignment_workers.policy.loaded import Loaded
from assignment_workers.policy.outcomes import Action, Outcome
from assignment_workers.policy.queues import Policy

POLICIES = Loaded[Policy]()
"""The policies of the loaded dialer, by dialer queue name, without the settings' calling rules."""

OUTCOMES = Loaded[Outcome]()
"""The outcomes of the loaded dialer, by name."""
ACTIONS = Loaded[Action]()
"""The actions of the loaded dialer, by name. Every dialer has the action `review`."""

_loaded: list[Dialer] = []


def use(dialer: Dialer) -> None:
    """Make `dialer` the dialer of this process. SQL statements built before are not changed."""
    _loaded[:] = [dialer]
    POLICIES.fill(dialer.policies)
    OUTCOMES.fill(dialer.outcomes_by_name)
    ACTIONS.fill(dialer.actions)


def loaded() -> Dialer:
    """Return the dialer of this process. Raises `RuntimeError` if none is loaded."""
    if not _loaded:
        raise RuntimeError("no dialer is loaded in this process: see dialer.loading.load")
    return _loaded[0]
