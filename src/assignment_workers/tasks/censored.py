"""Celery's configuration as shown in Flower, by `inspect conf` and in a report.

Celery itself looks at the name of each setting. Depending on the name, it hides the whole value,
hides only the password in it, or hides nothing. In the setting `redbeat_redis_url`, Celery hides
nothing, because of the setting's name. But the setting is an address with a password, which may be
the same as the broker's. Here the password in every address is hidden, whatever the name of the
setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery.app.utils import Settings

from assignment_workers.addresses import without_password


class Censored(Settings):
    """Celery's settings, changed so that their printed table shows no password."""

    def table(  # Celery passes both by position
        self,
        with_defaults: bool = False,  # noqa: FBT001, FBT002
        censored: bool = True,  # noqa: FBT001, FBT002
    ) -> dict[str, Any]:
        """Return the settings by name, without passwords if `censored`."""
        found: dict[str, Any] = super().table(with_defaults, censored)
        return (
            {name: without_passwords(value) for name, value in found.items()} if censored else found
        )


def without_passwords(value: object) -> object:
    """Return a copy of the value with the password of every address in it hidden."""
    match value:
        case str():
            return without_password(value)
        case Mapping():
            return {name: without_passwords(each) for name, each in value.items()}
        case list() | tuple() | set() | frozenset():
            return [without_passwords(each) for each in value]
        case _:
            return value
