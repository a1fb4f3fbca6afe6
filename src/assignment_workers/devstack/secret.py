"""The secrets of a stack that `up` starts: made once, kept in its home, for its owner alone."""

from __future__ import annotations

import secrets
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from assignment_workers.runtime.home import write_private

FILE = "secret.json"
FLOWER_USER = "flower"


class StackSecret(BaseModel):
    """What lets a program in: at the gateway, and at Flower."""

    model_config = ConfigDict(frozen=True)

    gateway_token: str
    """A bearer token that may do everything on this stack."""
    flower_auth: str
    """`user:password`."""
    number_key: str | None = None
    """What forgotten phone numbers are hashed with; null: of a home of an earlier version."""


def remembered(home: Path) -> StackSecret:
    """The secrets that the home keeps between starts, mode 0600; new ones where it has none.

    To make new ones, delete the file while the stack is down.
    """
    file = home / FILE
    try:
        made = StackSecret.model_validate_json(file.read_text(encoding="utf-8"))
        if made.number_key is not None:
            return made
    except (FileNotFoundError, ValidationError):
        made = StackSecret(
            gateway_token=f"aw_stack_{secrets.token_urlsafe(32)}",
            flower_auth=f"{FLOWER_USER}:{secrets.token_hex(24)}",
        )
    made = made.model_copy(update={"number_key": made.number_key or secrets.token_urlsafe(32)})
    write_private(file, made.model_dump_json(indent=2) + "\n")
    return made
