"""The types of task arguments: a message with an argument of another type is refused."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from assignment_workers.assignment.lifecycle.moves import Notes, Why
from assignment_workers.assignment.lifecycle.verb import AgentId, Version

UserId = Annotated[int, Field(strict=True, ge=1, le=2**63 - 1)]
GenerationId = Annotated[int, Field(strict=True, ge=1, le=2**63 - 1)]
ListId = Annotated[int, Field(strict=True, ge=1, le=2**63 - 1)]
RequestId = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
WORD_AT_MOST = 200
Word = Annotated[str, Field(max_length=WORD_AT_MOST, pattern=r"^[^\x00]*$")]

MANY = 1_000
"""The greatest number of requests, commands about assignments, or heartbeats in one message."""

__all__ = [
    "MANY",
    "WORD_AT_MOST",
    "AgentId",
    "GenerationId",
    "ListId",
    "Notes",
    "RequestId",
    "UserId",
    "Version",
    "Why",
    "Word",
]
