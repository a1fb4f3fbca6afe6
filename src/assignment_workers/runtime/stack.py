"""The addresses of a running stack's servers, for other programs."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from assignment_workers import links
from assignment_workers.runtime.errors import NoStack
from assignment_workers.runtime.home import holder, write_private
from assignment_workers.settings import Settings

FILE = "stack.json"
WITHOUT_DATABASE = ("flower", "beat")
"""Processes that use Redis and the broker only. They do not get the address of the database."""


class Stack(BaseModel):
    """A running stack: the addresses of its servers, and the process that holds its home."""

    model_config = ConfigDict(frozen=True)

    database_url: str
    redis_url: str
    broker_url: str
    gateway_url: str | None = None
    flower_url: str | None = None
    gateway_token: str | None = None
    """A bearer token that may do everything on this stack."""
    flower_auth: str | None = None
    """User and password for Flower, as `user:password`."""
    number_key: str | None = None
    """The key with which the phone numbers of erased users are hashed.

    None in a file that an earlier release wrote.
    """
    pid: int
    started_at: AwareDatetime

    def variables(self, *, now: datetime) -> dict[str, str]:
        """Return the stack's addresses and secrets, by the names of environment variables.

        A key of the result is for example `DATABASE_URL`. Addresses and secrets that are None are
        left out. The secret `number_key` is always left out. If the stack has a gateway (the server
        of the HTTP API and the dashboard) and its token, `DASHBOARD_URL` is included: a new
        sign-in link to the dashboard.
        """
        addresses = self.model_dump(exclude={"pid", "started_at", "number_key"}, exclude_none=True)
        if dashboard := self.dashboard_link(now=now):
            addresses["dashboard_url"] = dashboard
        return {name.upper(): address for name, address in addresses.items()}

    def dashboard_link(self, *, now: datetime) -> str | None:
        """Return a new sign-in link to the dashboard; None if none can be made.

        The link works once, within an hour of `now`. No link can be made if the stack has no
        gateway, or no token (`gateway_token`) to sign the link with.
        """
        return self._link(self.gateway_url, links.DASHBOARD, now=now)

    def flower_link(self, *, now: datetime) -> str | None:
        """Return a new sign-in link to Flower; None if none can be made.

        The link works once, within an hour of `now`. No link can be made if the stack has no
        Flower, or no token (`gateway_token`) to sign the link with.
        """
        return self._link(self.flower_url, links.FLOWER, now=now)

    def _link(self, url: str | None, purpose: str, *, now: datetime) -> str | None:
        if url is None or self.gateway_token is None:
            return None
        return f"{url}{links.PATH}?code={links.make(self.gateway_token, purpose, now=now)}"


def running_stack(settings: Settings) -> Stack | None:
    """Return the stack that runs with the home in `settings`; None if none runs or it is not ready.

    The home is the directory of a stack. Raises `HomeUnusable` if the home belongs to another
    operating system user.
    """
    held = holder(settings.home)
    if held is None or held.is_gone():
        return None
    try:
        text = (settings.home / FILE).read_text(encoding="utf-8")
        stack = Stack.model_validate_json(text)
    except (OSError, ValidationError):
        return None
    return stack if stack.pid == held.pid else None


def shell_assignments(stack: Stack) -> str:
    """Return a quoted line `export NAME=value` per address and secret, for `eval` in a shell."""
    variables = stack.variables(now=datetime.now(UTC))
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())


def resolve(settings: Settings) -> Settings:
    """Return the settings with the missing addresses of database, Redis and broker filled in.

    If the database or Redis is not set, the address is taken from the stack that runs with the home
    (the directory of a stack) in `settings`. Secrets that are not set are then taken from that
    stack as well. If the broker is not set, Redis in `settings` is also the broker. If Redis is not
    set either, the broker is that of the stack. Raises `NoStack` if an address is needed from a
    stack, and none runs or it is not ready.
    """
    database_url, redis_url = settings.database_url, settings.redis_url
    broker_url = settings.broker_url or redis_url
    if database_url is None or redis_url is None:
        stack = running_stack(settings)
        if stack is None:
            raise NoStack(settings.home.absolute())
        database_url = database_url or stack.database_url
        redis_url = redis_url or stack.redis_url
        broker_url = broker_url or stack.broker_url
        settings = settings.model_copy(
            update={
                "stack_token": settings.stack_token or stack.gateway_token,
                "number_key": settings.number_key or stack.number_key,
            }
        )
    return settings.model_copy(
        update={"database_url": database_url, "redis_url": redis_url, "broker_url": broker_url}
    )


def write(home: Path, stack: Stack) -> None:
    """Write the stack's addresses and secrets to `stack.json` in the stack's directory (mode 0600).

    The file is replaced at once, so another program never reads an incomplete one.
    """
    write_private(home / FILE, stack.model_dump_json(indent=2) + "\n")


def remove(home: Path) -> None:
    """Remove `stack.json`, the file with the stack's addresses, from the stack's directory."""
    (home / FILE).unlink(missing_ok=True)
