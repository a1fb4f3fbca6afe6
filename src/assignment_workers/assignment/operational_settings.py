"""Operational settings: those that operators change while the system runs.

Each operational setting is a field of `Settings`. The values in force are in the table `settings`,
which the module `settings_versions` reads. The environment and the dialer's file, which defines the
dialer queues, give only the first values. A value is a text, written as in the environment. A value
applies to one dialer queue, to one team of agents, or to every dialer queue and team without a
value of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from assignment_workers.assignment import calling
from assignment_workers.errors import UsageError, plain
from assignment_workers.policy.calling import CallingRules, read_holidays, read_week
from assignment_workers.policy.dialer import Dialer
from assignment_workers.settings import Settings, by_team, priorities

NONE = "none"
"""The value that switches a setting off, for all or for one dialer queue only."""
VALUE_AT_MOST = 500
TEAM_AT_MOST = 100
CHANGED_AT_MOST = 100
"""Maximum number of changes in one version of the settings."""
NUMBER_AT_MOST = 10**8
"""Maximum value of a setting that is a whole number."""


class SettingScope(StrEnum):
    """The kind of values that a setting can have besides its value for all.

    `queue`: each dialer queue can have a value of its own. `team`: each team of agents can have a
    value of its own. `nothing`: there is only the value for all.
    """

    NOTHING = "nothing"
    QUEUE = "queue"
    TEAM = "team"


@dataclass(frozen=True)
class OperationalSetting:
    """A setting that operators change while the system runs; `name` is its field in `Settings`."""

    name: str
    scope: SettingScope
    accepted: str
    """A description of the accepted values, for people."""
    read: Callable[[str], object]
    """Function that parses a value. Raises `ValueError` if the value is not accepted."""
    names_queue: bool = False
    """True if the environment variable has values by dialer queue: `queue_a=3, queue_b=5`."""
    is_of_queues: bool = False
    """True if a value is a list of dialer queues, as for `queue_priority`.

    `read` parses the names without checking that the dialer has such queues; `misfit` checks it.
    """

    @property
    def variable(self) -> str:
        """The name of the environment variable that gives the first value of the setting."""
        return str(Settings.model_fields[self.name].alias)

    @property
    def default(self) -> Any:  # noqa: ANN401 - of any type
        """The value that applies if the version of the settings in force has none."""
        return Settings.model_fields[self.name].default

    @property
    def is_rule(self) -> bool:
        """True if the setting decides who may be called; a change then rebuilds dialer queues."""
        return self.name not in calling.NOT_JUDGING

    @property
    def is_optional(self) -> bool:
        """True if the setting can be switched off, by the value `NONE`."""
        return self.default is None and self.scope is not SettingScope.TEAM


class SettingValue(BaseModel):
    """A value of an operational setting: for all, for a dialer queue, or for a team of agents."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    queue: str | None = None
    team: str | None = None
    value: str

    @property
    def key(self) -> Key:
        """The name of the setting, and the dialer queue and the team that the value is for."""
        return (self.name, self.queue, self.team)


class SettingChange(BaseModel):
    """A new value of an operational setting for all, for a dialer queue, or for a team of agents.

    `value` None removes the present value. A dialer queue or a team then uses the value for all. If
    that is missing too, the default is used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    queue: str | None = None
    team: str | None = None
    value: str | None = None

    @property
    def key(self) -> Key:
        """The name of the setting, and the dialer queue and the team that the change is for."""
        return (self.name, self.queue, self.team)


Key = tuple[str, str | None, str | None]
Values = Mapping[Key, str]
"""The values of one version of the settings, by setting, dialer queue and team."""


class SettingsInForce(Settings):
    """The settings of a process, with the operational settings of one stored version.

    There is one object per process and version, so objects are compared by identity.
    """

    version: int | None
    """The number of the stored version of the operational settings; None: none is stored yet."""
    queues: Mapping[str, Settings]

    @property
    def of_queues(self) -> Mapping[str, Settings]:
        """The settings in force of each dialer queue of the dialer, by name."""
        return self.queues

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def in_force(
    dialer: Dialer, given: Settings, version: int | None, values: Values
) -> SettingsInForce:
    """Return a copy of `given` with the operational settings of one stored version.

    A version has the values of the operational settings after a change. An operational setting for
    which the version has no value gets its default, not the value in `given`. `given`: the settings
    of the environment. `version`: the number of the version; None: no version is stored yet.
    `values`: the values of the version, or the first values if no version is stored yet.
    """
    names = list(dialer.policies)
    everywhere = dict(given) | _fields(values, None, names)
    queues = {name: given.model_copy(update=_fields(values, name, names)) for name in names}
    return SettingsInForce.model_construct(**everywhere | {"version": version, "queues": queues})


@lru_cache(maxsize=16)
def before_versions(dialer: Dialer, given: Settings) -> Settings:
    """Return the settings that are in force while no version is stored.

    These are the settings of the environment, `given`, together with the values of operational
    settings that the dialer's file gives to single dialer queues. The dialer's file is the file
    that defines the dialer queues. The result is cached by dialer and environment.
    """
    if not values_of_queues(dialer):
        return given
    values = {each.key: each.value for each in first_values(dialer, given)}
    return in_force(dialer, given, None, values)


def values_of_queues(dialer: Dialer) -> list[SettingValue]:
    """Return the values of operational settings that the dialer's file gives to dialer queues.

    The dialer's file is the file that defines the dialer queues.
    """
    return [
        SettingValue(name=name, queue=queue.name, value=str(value))
        for queue in dialer.queues
        for name, field in OF_QUEUES.items()
        if (value := getattr(queue, field)) is not None
    ]


OF_QUEUES = {
    "calling_hours": "calling_hours",
    "calling_holidays": "holidays",
    "queue_limit": "size_limit",
}
"""Maps an operational setting to the field of `Queue` that has the setting's first value.

A `Queue` is a dialer queue as the dialer's file declares it. The field is ignored for a dialer
queue once a stored version of the settings has had a value of this setting for this dialer queue.
The field stays ignored if a later version removes the value.
"""


def first_values(dialer: Dialer, given: Settings) -> list[SettingValue]:
    """Return the values of operational settings that the environment or the dialer's file gives.

    The dialer's file is the file that defines the dialer queues. `given`: the settings of the
    environment.
    """
    found = values_of_queues(dialer)
    for name in OPERATIONAL.keys() & given.model_fields_set:
        value = getattr(given, name)
        if value is not None:
            found += _parts(OPERATIONAL[name], value, calling.calling_rules(given, dialer.policies))
    return sorted(found, key=lambda each: (each.name, each.queue or "", each.team or ""))


def unknown_queues(dialer: Dialer, given: Settings) -> list[str]:
    """Return a warning for each unknown dialer queue that the setting `queue_priority` names.

    A dialer queue is unknown if the dialer does not have it. Each warning is one line of text.
    `given`: the settings of the environment.
    """
    if given.queue_priority is None:
        return []
    named = (queue for queues in priorities(given.queue_priority).values() for queue in queues)
    return [
        f"{OPERATIONAL['queue_priority'].variable} names the dialer queue {queue!r:.80}, which the"
        f" dialer does not have; there are {', '.join(dialer.policies)}"
        for queue in dict.fromkeys(named)
        if queue not in dialer.policies
    ]


def default_of(setting: OperationalSetting) -> str:
    """Return the default of a setting as text: it applies if the version in force has no value."""
    value = setting.default
    if value is None:
        return NONE
    return _seconds(value) if isinstance(value, timedelta) else str(value)


def misfit(change: SettingChange, queues: Collection[str]) -> str | None:
    """Return the reason why the change cannot be made, with the accepted values; None if it can.

    The reason is one line. `queues`: the names of the dialer's queues.
    """
    setting = OPERATIONAL.get(change.name)
    if setting is None:
        return f"no operational setting {change.name!r:.80}; there are {', '.join(OPERATIONAL)}"
    if change.queue is not None and setting.scope is not SettingScope.QUEUE:
        return f"{setting.name} has no value by dialer queue; it is {_scope(setting)}"
    if change.queue is not None and change.queue not in queues:
        return f"no dialer queue {change.queue!r:.80}; there are {', '.join(queues)}"
    if change.team is not None and setting.scope is not SettingScope.TEAM:
        return f"{setting.name} has no value by team; it is {_scope(setting)}"
    if change.team is not None and not _TEAM.fullmatch(change.team):
        return f"team {change.team!r:.80}: accepted are 1 to {TEAM_AT_MOST} letters without = , ;"
    if change.value is None:
        return None
    wrong = _unfit(setting, change.value, queues)
    if wrong is None:
        return None
    return f"{setting.name}={change.value!r:.80}: {wrong}; accepted: {setting.accepted}"


def _unfit(setting: OperationalSetting, value: str, queues: Collection[str]) -> str | None:
    if not 1 <= len(value) <= VALUE_AT_MOST or not value.isprintable():
        return f"not 1 to {VALUE_AT_MOST} printable letters"
    if value == NONE:
        return None if setting.is_optional else "it cannot be switched off"
    try:
        read = setting.read(value)
    except ValueError as error:
        return str(error)
    named = cast("tuple[str, ...]", read) if setting.is_of_queues else ()
    unknown = next((each for each in named if each not in queues), None)
    if unknown is not None:
        return f"no dialer queue {unknown!r:.80}; there are {', '.join(queues)}"
    return None


def _scope(setting: OperationalSetting) -> str:
    match setting.scope:
        case SettingScope.NOTHING:
            return "one value for all"
        case SettingScope.QUEUE:
            return "for all, or by dialer queue"
        case SettingScope.TEAM:
            return "for all, or by team"


def _fields(values: Values, queue: str | None, queues: Collection[str]) -> dict[str, Any]:
    """Return the values of the operational fields of `Settings` for one dialer queue.

    `queue` None: the values that apply to all queues. `queues`: the names of the dialer's queues.
    """
    said: dict[str, Any] = {}
    for setting in OPERATIONAL.values():
        text = _text(setting, values, queue, queues)
        if text is not None:
            said[setting.variable] = text
    read = Settings.model_validate(said)
    return {name: getattr(read, name) for name in OPERATIONAL}


def _text(
    setting: OperationalSetting, values: Values, queue: str | None, queues: Collection[str]
) -> str | None:
    """Return the value of a setting as the text that its environment variable would have.

    None: the default applies. `values`: the values of a version of the settings. `queue`: the
    dialer queue whose value is returned; None: the value that applies to all queues. `queues`: the
    names of the dialer's queues.
    """

    def own(of: str | None) -> str | None:
        said = values.get((setting.name, of, None), values.get((setting.name, None, None)))
        return None if said == NONE else said

    if setting.scope is SettingScope.TEAM:
        between = "; " if setting.name == "queue_priority" else ", "
        of_teams = [
            f"{team}={said}"
            for (name, _, team), said in sorted(values.items(), key=str)
            if name == setting.name and team is not None
        ]
        return between.join(filter(None, [own(None), *of_teams])) or None
    if setting.names_queue:
        named = queues if queue is None else [queue]
        return ", ".join(f"{each}={own(each)}" for each in named if own(each) is not None) or None
    return own(queue)


def _parts(
    setting: OperationalSetting,
    value: Any,  # noqa: ANN401
    rules: CallingRules,
) -> Iterable[SettingValue]:
    """Split the environment's value of a setting into separate values; yield each of them.

    Each separate value is for one dialer queue, for one team, or for all. `value`: the content of
    the setting's field in `Settings`. `rules`: the calling rules made from the settings of the
    environment. Two settings are taken from `rules`, which has their values by dialer queue:
    `calls_per_day` (the number of calls to a user in 24 hours) and `call_cooldown` (the shortest
    time between two calls to a user).
    """
    name = setting.name
    match name:
        case "calls_per_day":
            for queue, most in rules.calls_per_day.items():
                yield SettingValue(name=name, queue=queue, value=str(most))
        case "call_cooldown":
            for queue, least in rules.cool_down.items():
                yield SettingValue(name=name, queue=queue, value=_seconds(least))
        case "queue_priority":
            for team, queues in priorities(value).items():
                yield SettingValue(name=name, team=team, value=", ".join(queues))
        case _ if setting.scope is SettingScope.TEAM:
            for team, number in by_team(value).items():
                yield SettingValue(name=name, team=team, value=str(number))
        case _:
            said = _seconds(value) if isinstance(value, timedelta) else str(value)
            yield SettingValue(name=name, value=said)


def _seconds(value: timedelta) -> str:
    return f"{value.total_seconds():.6f}".rstrip("0").rstrip(".")


_TEAM = re.compile(rf"[^=,;\s\x00-\x1f]([^=,;\x00-\x1f]{{0,{TEAM_AT_MOST - 2}}}[^=,;\s\x00-\x1f])?")
_WHOLE = re.compile(r"[0-9]{1,9}", re.ASCII)


def _number(most: int) -> Callable[[str], int]:
    def read(said: str) -> int:
        if not _WHOLE.fullmatch(said) or not 1 <= int(said) <= most:
            raise ValueError("no such number")
        return int(said)

    return read


def _as_variable(name: str) -> Callable[[str], object]:
    """Return a function that parses a setting's value in the format of its environment variable."""

    def read(said: str) -> object:
        try:
            checked = Settings.model_validate({Settings.model_fields[name].alias: said})
        except ValidationError as error:
            raise ValueError(plain(error.errors()[0]["msg"])) from None
        return getattr(checked, name)

    return read


def _order(said: str) -> tuple[str, ...]:
    queues = tuple(each.strip() for each in said.split(","))
    if len(set(queues)) < len(queues):
        raise ValueError("a dialer queue is named twice")
    return queues


_SECONDS = "seconds, 0.001 or more"
_COUNT = f"a whole number from 1 to {NUMBER_AT_MOST}"


def _counts(name: str, scope: SettingScope, most: int = NUMBER_AT_MOST) -> OperationalSetting:
    off = Settings.model_fields[name].default is None and scope is not SettingScope.TEAM
    accepted = f"a whole number from 1 to {most}{f', or {NONE}' if off else ''}"
    return OperationalSetting(name, scope, accepted, _number(most))


def _lasts(name: str, scope: SettingScope = SettingScope.NOTHING) -> OperationalSetting:
    return OperationalSetting(name, scope, _SECONDS, _as_variable(name))


_QUEUE, _TEAMS = SettingScope.QUEUE, SettingScope.TEAM
OPERATIONAL: dict[str, OperationalSetting] = {
    each.name: each
    for each in (
        OperationalSetting(
            "calling_hours",
            _QUEUE,
            f"days and hours such as mon-thu 10:00-19:00, fri 10:00-18:00, or {NONE}",
            read_week,
        ),
        OperationalSetting(
            "calling_holidays",
            _QUEUE,
            f"countries or parts of one, such as GB-ENG, US, or {NONE}",
            read_holidays,
        ),
        OperationalSetting(
            "calls_per_day",
            _QUEUE,
            f"a whole number from 1 to {calling.CALLS_AT_MOST}, or {NONE}",
            _number(calling.CALLS_AT_MOST),
            names_queue=True,
        ),
        OperationalSetting(
            "call_cooldown",
            _QUEUE,
            f"whole seconds from 1 to {calling.SECONDS_AT_MOST}, or {NONE}",
            _number(calling.SECONDS_AT_MOST),
            names_queue=True,
        ),
        OperationalSetting(
            "attempts_maximum",
            _QUEUE,
            f"{_COUNT}, or {NONE}",
            _number(NUMBER_AT_MOST),
        ),
        OperationalSetting(
            "offer_gap", _QUEUE, f"{_SECONDS}, or {NONE}", _as_variable("offer_gap")
        ),
        OperationalSetting("queue_limit", _QUEUE, f"{_COUNT}, or {NONE}", _number(NUMBER_AT_MOST)),
        _counts("level_minimum", _QUEUE),
        _lasts("level_interval", _QUEUE),
        OperationalSetting(
            "queue_priority",
            _TEAMS,
            "dialer queues, separated by commas, in the order in which they are served",
            _order,
            is_of_queues=True,
        ),
        _lasts("lease", _QUEUE),
        _lasts("offer", _QUEUE),
        _counts("offers_lapsed", SettingScope.NOTHING),
        _lasts("skip_agent"),
        _lasts("skip_everyone", _QUEUE),
        _lasts("defer_maximum", _QUEUE),
        _lasts("callback_preferred"),
        _lasts("callback_retry"),
        _counts("quarantine_after", _QUEUE),
        _counts("session_calls", _TEAMS),
        _counts("call_gap", _TEAMS),
        _counts("break_interval", _TEAMS),
    )
}
"""The operational settings by name."""


def changes_rules(names: Collection[str]) -> bool:
    """Return True if one of these settings decides who may be called."""
    return any(OPERATIONAL[name].is_rule for name in names)


def check_rules(dialer: Dialer, settings: Settings) -> str | None:
    """Return the reason why the calling rules of `settings` cannot be used together; or None.

    The reason is one line.
    """
    try:
        calling.policies_of(dialer, settings)
    except UsageError as error:
        return str(error)
    return None
