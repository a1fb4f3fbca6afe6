"""The versions of the operational settings, as every process reads them.

A change writes the id of its version into the rows of all lanes (`settings_changes`). A transaction
of the sequencer reads its lane's row when it checks the term, so it uses the version in force
without a further round trip. Any other transaction reads the latest version.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import structlog
from pydantic import BaseModel
from sqlalchemy import Connection, Row, bindparam, select

from assignment_workers.assignment.operational_settings import (
    OF_QUEUES,
    OPERATIONAL,
    SettingScope,
    SettingsInForce,
    SettingValue,
    Values,
    before_versions,
    default_of,
    first_values,
    in_force,
    values_of_queues,
)
from assignment_workers.assignment.transaction import FencedTransaction
from assignment_workers.policy.dialer import Dialer
from assignment_workers.schema.tables import SettingsVersion
from assignment_workers.settings import Settings

log = structlog.get_logger()

KNOWN_AT_MOST = 16


class AppliedChange(BaseModel):
    """A changed value of an operational setting, for a dialer queue, for a team, or for all.

    `before`: the old value; None: there was none. `after`: the new value; None: the value was
    removed. A dialer queue or a team without a value of its own uses the value for all. If there is
    no value for all, the default is used.
    """

    name: str
    queue: str | None = None
    team: str | None = None
    before: str | None
    after: str | None


class StoredVersion(BaseModel):
    """A version of the operational settings: by whom it was made, its changes and its values."""

    version: int
    id: UUID
    at: datetime
    who: str
    why: str
    changes: list[AppliedChange]
    values: list[SettingValue]

    def in_force(self, dialer: Dialer, given: Settings) -> SettingsInForce:
        """Return a copy of `given` with this version's values of the operational settings.

        `given`: the settings of the environment.
        """
        return in_force(dialer, given, self.version, self._by_key())

    def _by_key(self) -> Values:
        # A later release may have stored settings that this one does not know.
        return {each.key: each.value for each in self.values if each.name in OPERATIONAL}


def current(connection: Connection, dialer: Dialer, given: Settings) -> Settings:
    """Return the settings in force, read in the caller's transaction.

    `given`: the settings of the environment. Operational settings (such as calling hours), which an
    operator changes while the system runs, are read from the database; all others are those of
    `given`.
    Cost: a read of the id of the newest version, and of its row if the process has not cached it.
    """
    found = connection.execute(_LATEST_ID).scalar_one_or_none()
    if found is None:
        return before_versions(dialer, given)
    return _known(connection, found, dialer, given)


def version_of(settings: Settings) -> int | None:
    """Return the number of these settings' version; None if they are of no stored version."""
    return settings.version if isinstance(settings, SettingsInForce) else None


def of_transaction(transaction: FencedTransaction, given: Settings) -> Settings:
    """Return the settings in force in this transaction of the sequencer.

    `given`: the settings of the environment. Cost: nothing, except for one read of the version's
    row in the first transaction of the process after a change.
    """
    if transaction.settings_id is None:
        return before_versions(transaction.dialer, given)
    return _known(transaction.connection, transaction.settings_id, transaction.dialer, given)


_KNOWN: dict[UUID, tuple[Dialer, Settings, SettingsInForce]] = {}
"""Cached settings in force, by the id of the stored version.

Each entry has three parts: the dialer, the settings of the environment, and the settings in force
that were made from the version for these two. The cached settings are used only for the same dialer
and the same settings of the environment.
"""


def _known(connection: Connection, id_: UUID, dialer: Dialer, given: Settings) -> SettingsInForce:
    found = _KNOWN.get(id_)
    if found is not None and found[0] is dialer and found[1] is given:
        return found[2]
    row = connection.execute(_VERSION, {"id": id_}).one()
    read = _version(row).in_force(dialer, given)
    while len(_KNOWN) >= KNOWN_AT_MOST:
        _KNOWN.pop(next(iter(_KNOWN)), None)
    _KNOWN[id_] = (dialer, given, read)
    return read


def latest(connection: Connection) -> StoredVersion | None:
    """Return the version in force; None if none is stored, because no sequencer has led yet."""
    row = connection.execute(_HISTORY.limit(1)).one_or_none()
    return None if row is None else _version(row)


def history(connection: Connection, *, most: int) -> list[StoredVersion]:
    """Return the newest versions of the operational settings, at most `most`, the newest first."""
    return [_version(row) for row in connection.execute(_HISTORY.limit(most))]


def every(connection: Connection) -> list[StoredVersion]:
    """Return all stored versions of the operational settings, the newest first."""
    return [_version(row) for row in connection.execute(_HISTORY)]


def since(connection: Connection, at: datetime) -> list[StoredVersion]:
    """Return the version in force at the time `at`, if any, and all later ones, oldest first."""
    found = every(connection)
    later = [each for each in found if each.at >= at]
    return [*reversed(found[: len(later) + 1])]


def _version(row: Row[*tuple[Any, ...]]) -> StoredVersion:
    return StoredVersion.model_validate(row._asdict())


class ValueInForce(BaseModel):
    """A value in force of an operational setting, for a dialer queue, for a team, or for all.

    If `queue` and `team` are None, the value is for all: each dialer queue and team without a value
    of its own uses it.
    """

    name: str
    queue: str | None = None
    team: str | None = None
    value: str


class SettingInForce(BaseModel):
    """An operational setting: its values in force, its default, and what is accepted.

    The text `none`, as `default` or as a value, means that the setting is switched off.
    """

    name: str
    scope: SettingScope
    accepted: str
    default: str
    values: list[ValueInForce]


class InForce(BaseModel):
    """The operational settings in force.

    `version` None: no version is stored yet, and the values are those of this process's environment
    and of the dialer's file, which defines the dialer queues. `since`, `who`, `why`: the time at
    which the version was made, by whom, and the reason.
    """

    version: int | None
    since: datetime | None
    who: str | None
    why: str | None
    settings: list[SettingInForce]


def shown(
    connection: Connection, dialer: Dialer, given: Settings, name: str | None = None
) -> InForce:
    """Return the operational settings in force. `name`: only the setting of this name."""
    found = latest(connection)
    values = first_values(dialer, given) if found is None else found.values
    by_name: dict[str, list[ValueInForce]] = {each: [] for each in OPERATIONAL}
    for each in values:
        if each.name in by_name:
            by_name[each.name].append(ValueInForce(**each.model_dump()))
    for setting in OPERATIONAL.values():
        of_all = [each for each in by_name[setting.name] if each.queue is None and not each.team]
        if not of_all:
            default = ValueInForce(name=setting.name, value=default_of(setting))
            by_name[setting.name].insert(0, default)
    return InForce(
        version=None if found is None else found.version,
        since=None if found is None else found.at,
        who=None if found is None else found.who,
        why=None if found is None else found.why,
        settings=[
            SettingInForce(
                name=each.name,
                scope=each.scope,
                accepted=each.accepted,
                default=default_of(each),
                values=by_name[each.name],
            )
            for each in OPERATIONAL.values()
            if name in {None, each.name}
        ],
    )


def ignored(connection: Connection, dialer: Dialer, given: Settings) -> list[str]:
    """Return a line for each value in the environment or the dialer's file that has no effect.

    Only values of operational settings are compared. The dialer's file is the file that defines the
    dialer queues.

    As soon as a version of the settings is stored, only the values of the newest version count. A
    value of the environment then has no effect if another value of the setting is in force. A value
    that the dialer's file has for a dialer queue has no effect in two cases. First, the version has
    another value of the setting for this queue. Second, the version has no value of the setting for
    this queue: the queue then uses the version's value for all queues or, without such a value, the
    default. The list is empty if no version is stored.
    """
    before = latest(connection)
    if before is None:
        return []
    now = before.in_force(dialer, given)
    own = {(each.key, each.value) for each in first_values(dialer, given)}
    stored = {(each.key, each.value) for each in before.values}
    as_stored = {
        name
        for name in OPERATIONAL
        if {each for each in own if each[0][0] == name}
        == {each for each in stored if each[0][0] == name}
    }
    variables = [
        f"{setting.variable} is ignored: version {before.version} of the settings has another"
        f" value of {name}; `assignment-workers settings show {name}` prints it"
        for name, setting in OPERATIONAL.items()
        if name in given.model_fields_set - as_stored and getattr(given, name) != getattr(now, name)
    ]
    values = {each.key: each.value for each in before.values}
    return variables + [
        f"queue {each.queue}: {OF_QUEUES[each.name]} of the dialer's file is ignored: version"
        f" {before.version} of the settings has another value of {each.name};"
        f" `assignment-workers settings show {each.name}` prints it"
        for each in values_of_queues(dialer)
        if values.get(each.key) != each.value
    ]


def unknown_values(connection: Connection, dialer: Dialer) -> list[str]:
    """Return a line for each value in force that is set for an unknown dialer queue.

    The dialer does not have such a queue, so the value is ignored.
    """
    found = latest(connection)
    if found is None:
        return []
    return [
        f"version {found.version} of the settings has a value of {each.name} for the dialer queue"
        f" {each.queue}, which the dialer does not have: it is ignored"
        for each in found.values
        if each.queue is not None and each.queue not in dialer.policies
    ]


def tell_ignored(connection: Connection, dialer: Dialer, given: Settings) -> None:
    """Log a warning for each value in the environment or the dialer's file that has no effect.

    Only values of operational settings are compared. The dialer's file is the file that defines the
    dialer queues. Called when a process starts.

    As soon as a version of the settings is stored, only the values of the newest version count. A
    value of the environment then has no effect if another value of the setting is in force. A value
    that the dialer's file has for a dialer queue has no effect in two cases. First, the version has
    another value of the setting for this queue. Second, the version has no value of the setting for
    this queue: the queue then uses the version's value for all queues or, without such a value, the
    default. Nothing is logged if no version is stored.
    """
    for line in ignored(connection, dialer, given):
        log.warning("variable_ignored", why=line)


_COLUMNS = [getattr(SettingsVersion, name) for name in StoredVersion.model_fields]
_HISTORY = select(*_COLUMNS).order_by(SettingsVersion.version.desc())
_LATEST_ID = select(SettingsVersion.id).order_by(SettingsVersion.version.desc()).limit(1)
_VERSION = select(*_COLUMNS).where(SettingsVersion.id == bindparam("id"))
