"""The secrets of a stack that `up` starts.

They are made once and stored in a file in the home, which is the stack's directory. Only the
account that owns the file may read it (mode 0600); `up` runs as that account.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from assignment_workers.runtime.home import write_private

FILE = "secret.json"
FLOWER_USER = "flower"


class StackSecret(BaseModel):
    """The secrets of one stack: for access to its gateway and to Flower, and a key for hashes."""

    model_config = ConfigDict(frozen=True)

    gateway_token: str
    """A bearer token that may do everything on this stack."""
    flower_auth: str
    """User and password for Flower, as `user:password`."""
    number_key: str | None = None
    """The key for hashes of erased users' phone numbers; null in a file of an earlier release."""


def remembered(home: Path) -> StackSecret:
    """Return the secrets of the stack whose directory is `home`; create and store missing ones.

    The secrets are stored in the file `secret.json`, mode 0600. To replace the secrets, delete the
    file while the stack is down.
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
