"""Codes that are good once and for a while: what a sign-in link and a signed cookie carry.

A code is signed with a secret that both sides have; nothing has to be stored to make one. That a
code is used once is for its reader to hold: `SignInCode.name` is different in each.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

DASHBOARD, FLOWER, FLOWER_SESSION = "dashboard", "flower", "flower session"
"""What a code is for: none is good for anything else."""
PATH = "/sign-in"
"""Where a sign-in link leads, at the gateway and at Flower: `/sign-in?code=...`."""
LINK_LASTS = timedelta(hours=1)
"""How long a sign-in link is good for."""
_LONGEST = 200


@dataclass(frozen=True)
class SignInCode:
    """A code that was read and is good."""

    name: str
    expires_at: datetime


def make(secret: str, purpose: str, *, now: datetime, lasts: timedelta = LINK_LASTS) -> str:
    """A new code for this purpose: letters, digits, `-`, `_` and `.` alone."""
    said = f"{int((now + lasts).timestamp())}.{secrets.token_hex(12)}"
    return f"{said}.{_signature(secret, purpose, said)}"


def read(secret: str, purpose: str, code: str, *, now: datetime) -> SignInCode | None:
    """The code, if it was made with this secret for this purpose and is not over."""
    said, _, signature = code.rpartition(".")
    if len(code) > _LONGEST or not hmac.compare_digest(
        signature.encode("utf-8", "surrogatepass"), _signature(secret, purpose, said).encode()
    ):
        return None
    until, _, name = said.partition(".")
    expires_at = datetime.fromtimestamp(int(until), UTC)
    return SignInCode(name, expires_at) if now < expires_at else None


def _signature(secret: str, purpose: str, said: str) -> str:
    words = f"{purpose}\n{said}".encode("utf-8", "surrogatepass")
    return hmac.new(secret.encode(), words, hashlib.sha256).hexdigest()
