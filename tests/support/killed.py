"""Workers that one agent's messages kill while they are handled, as a kernel without memory does."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from typing import Any

from assignment_workers.tasks import maintenance, moves, requests

POISON = 13
"""The agent at whose request, move and sign of life the process is killed."""


def kill_at_poison() -> None:
    """To be called in the worker's process before anything else."""
    claim, beat = vars(requests)["claim"], vars(maintenance)["beat"]
    finish = vars(moves)["finish"]

    def claiming(transaction: Any, asked: Any, **options: Any) -> Any:
        answers = claim(transaction, asked, **options)
        _kill(each.agent_id for each in asked)
        return answers

    def beating(connection: Any, beats: Any, **options: Any) -> Any:
        _kill(beats)
        return beat(connection, beats, **options)

    def finishing(transaction: Any, made: Any, **options: Any) -> Any:
        answers = finish(transaction, made, **options)
        _kill(each.owner.agent_id for each in made)
        return answers

    vars(requests)["claim"], vars(maintenance)["beat"] = claiming, beating
    vars(moves)["finish"] = finishing


def _kill(agents: Iterable[int]) -> None:
    if POISON in agents:
        os.kill(os.getpid(), signal.SIGKILL)
