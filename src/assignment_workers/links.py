"""Signed codes that expire and are used once, for sign-in links and signed cookies.

The program that makes a code signs it with a secret. The program that reads the code has the same
secret. Therefore nothing is stored when a code is made. The program that reads codes has to refuse
a code that was used before; `SignInCode.name` identifies the code.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

DASHBOARD, FLOWER, FLOWER_SESSION = "dashboard", "flower", "flower session"
"""The purposes of signed codes. A code that was made for one purpose is refused for any other."""
PATH = "/sign-in"
"""The path of a sign-in link, as in `/sign-in?code=...`.

It is the same path at the gateway, which is this project's HTTP server, and at Flower, the monitor
of Celery.
"""
LINK_LASTS = timedelta(hours=1)
"""The lifetime of a sign-in link."""
_LONGEST = 200


@dataclass(frozen=True)
class SignInCode:
    """A correctly signed code that has not expired. No two codes have the same `name`."""

    name: str
    expires_at: datetime


def make(secret: str, purpose: str, *, now: datetime, lasts: timedelta = LINK_LASTS) -> str:
    """Return a new code for `purpose`, which expires when `lasts` has passed since `now`.

    It consists of letters, digits, `-`, `_` and `.`.
    """
    said = f"{int((now + lasts).timestamp())}.{secrets.token_hex(12)}"
    return f"{said}.{_signature(secret, purpose, said)}"


def read(secret: str, purpose: str, code: str, *, now: datetime) -> SignInCode | None:
    """Return the code if it was made with this secret for this purpose and has not expired.

    Otherwise return None. A code that was used before is returned as well; the caller must refuse
    such a code (see `SignInCode.name`).
    """
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
