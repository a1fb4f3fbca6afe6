"""The settings of a process, read once from environment variables into one typed object."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)

from assignment_workers.addresses import check_address
from assignment_workers.errors import UsageError, plain

PREFIX = "ASSIGNMENT_WORKERS_"
ProcessName = Literal["sequencer", "maintenance", "heartbeats", "beat", "flower", "gateway"]
"""The names of the processes of a stack."""


def _address(*schemes: str) -> AfterValidator:
    def check(value: str) -> str:
        return check_address(value, *schemes)

    return AfterValidator(check)


PostgresAddress = Annotated[
    str, _address("postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2")
]
CrmAddress = Annotated[
    str,
    _address(
        *("postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2"),
        *("mysql", "mysql+pymysql", "mariadb", "mariadb+pymysql"),
    ),
]
RedisAddress = Annotated[str, _address("redis", "rediss", "sentinel")]
BrokerAddress = Annotated[str, _address("redis", "rediss", "sentinel", "amqp", "amqps")]


def _seconds(least: float) -> BeforeValidator:
    """Return a validator for durations: a number of seconds, at least `least`, becomes a timedelta.

    A timedelta is accepted unchanged.
    """

    def read(value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if not least <= seconds <= 10 * 365 * 86_400:
            raise ValueError(f"not a number of seconds from {least:g} to ten years")
        return timedelta(seconds=seconds)

    return BeforeValidator(read)


class _OutcomeChange(BaseModel):
    """The changed properties of one call outcome in the setting `outcomes`.

    Properties that are not given keep their defaults. `review_after` is the number of earlier calls
    with this outcome after which an operator is to review the user; null: never.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    score: Annotated[int, Field(ge=0, le=10**8)] = 0
    delay_seconds: Annotated[int, Field(ge=0, le=10**8)] = 0
    actions: tuple[str, ...] = ()
    review_after: Annotated[int, Field(ge=0, le=10**8)] | None = None
    review_unpromised: bool = False


_OUTCOMES = TypeAdapter(dict[str, _OutcomeChange])


def _outcomes(value: str) -> str:
    """Validate the JSON of the setting `outcomes`, and return the text unchanged."""
    try:
        _OUTCOMES.validate_json(value, strict=True)
    except ValidationError:
        raise ValueError(
            """not JSON such as {"no_answer": {"score": 2, "delay_seconds": 7200, "actions":"""
            """ ["send_sms"]}}"""
        ) from None
    return value


def _certificates(value: str) -> str:
    """Validate the setting `certificates`, and return the text unchanged."""
    for each in filter(None, (one.strip() for one in value.split(","))):
        if "://" in each:
            check_address(each, "https")
        elif not Path(each).is_file():
            raise ValueError(f"{each!r} is neither a file nor an address such as https://host")
    return value


def by_team(value: str) -> dict[str | None, int]:
    """Parse a setting such as `100, unsigned=80`: a whole number for all agents, or for a team.

    Returns the numbers by team; the key None stands for all agents.
    """
    found: dict[str | None, int] = {}
    for part in value.split(","):
        name, equals, said = (each.strip() for each in part.rpartition("="))
        if not said.isdecimal() or not 1 <= int(said) <= 10**8 or bool(equals) != bool(name):
            raise ValueError(
                f"{part.strip()!r}: a whole number from 1, for all, or by team as in unsigned=80"
            )
        found[name or None] = int(said)
    return found


def priorities(value: str) -> dict[str | None, tuple[str, ...]]:
    """Parse a setting such as `a, b; outbound=b`: dialer queues in order, for all or by team.

    Returns the names of the dialer queues by team; the key None stands for all agents.
    """
    found: dict[str | None, tuple[str, ...]] = {}
    for part in value.split(";"):
        name, equals, said = (each.strip() for each in part.rpartition("="))
        queues = tuple(each.strip() for each in said.split(","))
        if not all(queues) or bool(equals) != bool(name):
            raise ValueError(
                f"{part.strip()!r}: dialer queues in order, for all, or by team as in team=a, b"
            )
        found[name or None] = queues
    return found


def _parsed_by(parse: Callable[[str], object]) -> AfterValidator:
    """Return a validator that accepts a text if `parse` does. The text is not changed."""

    def check(value: str) -> str:
        parse(value)
        return value

    return AfterValidator(check)


Seconds = Annotated[timedelta, _seconds(0.001)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Settings(BaseModel):
    """All settings.

    Each field's alias is the environment variable that sets it. Durations in environment variables
    are in seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    database_url: PostgresAddress | None = Field(None, alias="DATABASE_URL")
    """The address of the PostgreSQL database; unset: the server that the command `up` runs.

    Any form that libpq accepts, also `name=value` pairs. Of several hosts, the primary is used.
    """
    redis_url: RedisAddress | None = Field(None, alias="REDIS_URL")
    """The address of Redis or Valkey, for messages, results and beat's lock.

    Unset: the server that the command `up` runs. An address with Sentinel is written as in
    `sentinel://:password@a:26379/0;sentinel://b:26379/0?master_name=dialer`.
    """
    broker_url: BrokerAddress | None = Field(None, alias="BROKER_URL")
    """The broker if it is not REDIS_URL: RabbitMQ, or another Redis."""
    crm_database_url: CrmAddress | None = Field(None, alias="CRM_DATABASE_URL")
    """The database of an external CRM; unset: the CRM is the schema `crm` of DATABASE_URL."""
    command_key: Annotated[str, Field(min_length=32)] | None = Field(
        None, alias="ASSIGNMENT_WORKERS_COMMAND_KEY"
    )
    """The key that signs operators' commands: the same for sequencers, gateways and the CLI.

    Unset: a stack that the command `up` runs uses its own secret, and other processes do not sign.
    A command without a valid signature is carried out, but its events name the operator with the
    prefix `unauthenticated: `, because the name may be forged.
    """
    number_key: Annotated[str, Field(min_length=32)] | None = Field(
        None, alias="ASSIGNMENT_WORKERS_NUMBER_KEY"
    )
    """The secret key of the hashes that replace phone numbers on the do-not-contact list.

    When a user is erased, such a number of the user is stored only as a hash. The key must be the
    same for every process, and must never change. Unset: the processes of a stack that `up` runs
    share a key that `up` makes once and stores. Without a key, a user with such a number cannot be
    erased.
    """
    worker_password: str | None = Field(None, alias="ASSIGNMENT_WORKERS_WORKER_PASSWORD")
    """The password that `schema migrate --roles` gives the database role `assignment_worker`.

    Unset: a new role gets no password and no right to log in; an existing role keeps both.
    """
    gateway_password: str | None = Field(None, alias="ASSIGNMENT_WORKERS_GATEWAY_PASSWORD")
    """The password that `schema migrate --roles` gives the database role `assignment_gateway`.

    Unset: a new role gets no password and no right to log in; an existing role keeps both.
    """
    reader_password: str | None = Field(None, alias="ASSIGNMENT_WORKERS_READER_PASSWORD")
    """The password that `schema migrate --roles` gives the database role `assignment_reader`.

    Unset: a new role gets no password and no right to log in; an existing role keeps both.
    """
    home: Path = Field(Path(".assignment-workers"), alias="ASSIGNMENT_WORKERS_HOME")
    """The folder of the embedded servers' data, of the logs and of the stack's secret."""

    lock_database_url: PostgresAddress | None = Field(
        None, alias="ASSIGNMENT_WORKERS_LOCK_DATABASE_URL"
    )
    """The address of PostgreSQL itself, needed if DATABASE_URL leads to a connection pooler.

    The sequencer's lock, the live events of gateways (`LISTEN`) and migrations use this address.
    Each of them needs one connection to PostgreSQL for longer than a transaction, which a pooler
    may not give. Unset: they use DATABASE_URL.
    """

    crm_mapping: str = Field("original", alias="ASSIGNMENT_WORKERS_CRM_MAPPING")
    """The choice of the names that an external CRM's tables and columns have.

    The dialer file, `dialerconfig.py`, defines the dialer queues and declares names. `original`:
    the CRM has the names that the dialer file declares. Any other value: a key of `mappings` in the
    dialer file; the CRM has the names in the mapping with this key.
    """
    crm_columns: str | None = Field(None, alias="ASSIGNMENT_WORKERS_CRM_COLUMNS")
    """The optional columns that the CRM's table of users has; unset: none.

    In `country=country_code, time_zone`, the CRM's column `country_code` is used as `country`.
    """
    crm_timeout: Annotated[timedelta, _seconds(0.01)] = Field(
        timedelta(seconds=0.3), alias="ASSIGNMENT_WORKERS_CRM_TIMEOUT_SECONDS"
    )
    """The time that a claim waits for an answer of an external CRM."""
    crm_grace: Seconds | None = Field(None, alias="ASSIGNMENT_WORKERS_CRM_GRACE_SECONDS")
    """The greatest age at which claims use the mirror, while the external CRM is unavailable.

    The mirror is the copy of the CRM's facts in our own database. Unset: claims do not use it.
    """

    lease: Seconds = Field(timedelta(minutes=5), alias="ASSIGNMENT_WORKERS_LEASE_SECONDS")
    """The time that an accepted assignment lasts without a sign of life of its agent."""
    offer: Seconds = Field(timedelta(minutes=2), alias="ASSIGNMENT_WORKERS_OFFER_SECONDS")
    """The time that an assignment waits to be accepted."""
    offers_lapsed: Annotated[int, Field(ge=1)] = Field(
        3, alias="ASSIGNMENT_WORKERS_OFFERS_LAPSED_MAXIMUM"
    )
    """The number of offers in a row, each not accepted in time, that set an agent on break."""
    defer_maximum: Seconds = Field(
        timedelta(days=30), alias="ASSIGNMENT_WORKERS_DEFER_MAXIMUM_SECONDS"
    )
    """The longest time for which an agent can defer a user, from the agent's command on.

    A deferred user is offered to no agent until the time that the agent chose.
    """
    session_calls: Annotated[str, _parsed_by(by_team)] | None = Field(
        None, alias="ASSIGNMENT_WORKERS_SESSION_CALLS"
    )
    """The greatest number of completed calls in one session of an agent; unset: no limit.

    For all agents, or by team: with `100, unsigned=80`, it is 80 for agents of the team `unsigned`
    and 100 for all other agents.
    """
    call_gap: Annotated[str, _parsed_by(by_team)] | None = Field(
        None, alias="ASSIGNMENT_WORKERS_CALL_GAP_SECONDS"
    )
    """The shortest time from the end of an agent's call to the agent's next user.

    For all agents, or by team as in `30, unsigned=60`.
    """
    break_interval: Annotated[str, _parsed_by(by_team)] | None = Field(
        None, alias="ASSIGNMENT_WORKERS_BREAK_INTERVAL_SECONDS"
    )
    """The longest time that an agent may work without a break.

    For all agents, or by team as in `7200, unsigned=5400`.
    """
    skip_agent: Seconds = Field(timedelta(hours=1), alias="ASSIGNMENT_WORKERS_SKIP_AGENT_SECONDS")
    """The time for which a skipped user is not offered again to the agent who skipped them."""
    skip_everyone: Seconds = Field(
        timedelta(minutes=15), alias="ASSIGNMENT_WORKERS_SKIP_EVERYONE_SECONDS"
    )
    """The time for which a skipped user is offered to no agent."""
    callback_preferred: Seconds = Field(
        timedelta(minutes=10), alias="ASSIGNMENT_WORKERS_CALLBACK_PREFERRED_SECONDS"
    )
    """The time for which a callback is reserved for the agent who promised it.

    The time begins when the callback is due. After it, or if that agent is not active, any agent
    may get the callback.
    """
    callback_retry: Seconds = Field(
        timedelta(minutes=15), alias="ASSIGNMENT_WORKERS_CALLBACK_RETRY_SECONDS"
    )
    """The time after which an unsuccessful callback is tried again.

    A callback is unsuccessful if nobody answers the call. The callback is then tried again a
    limited number of times. A callback is also unsuccessful if a rule, such as the calling hours,
    forbids the call when the callback is due. But if the user opted out or converted, the callback
    is cancelled instead. The callback is also cancelled if a rule still forbids the call a day
    after the promised time, unless the rule only limits the times and the number of calls.

    The setting also applies to missed calls. A missed call is a user's call that nobody answered;
    an agent is to call the user back. A missed call is tried again after this time if the calling
    hours forbid the agent's call when it is due. It is also tried again after this time if the user
    was called or offered to agents too often or too recently.
    """
    phone_region: Annotated[str, Field(pattern=r"^[A-Z]{2}$")] = Field(
        "GB", alias="ASSIGNMENT_WORKERS_PHONE_REGION"
    )
    """The region of phone numbers without a country code: two capital letters."""
    offer_without_number: bool | None = Field(None, alias="ASSIGNMENT_WORKERS_OFFER_WITHOUT_NUMBER")
    """True if users without a readable phone number are offered.

    Unset: they are offered if no calling hours are set.
    """
    outcomes: Annotated[str, AfterValidator(_outcomes)] = Field(
        "{}", alias="ASSIGNMENT_WORKERS_OUTCOMES"
    )
    """Changed properties of call outcomes, such as the delay until the next call, as JSON.

    Example: `{"no_answer": {"score": 2, "delay_seconds": 7200}}`. A property that is not given
    keeps its default.
    """
    lanes: str | None = Field(None, alias="ASSIGNMENT_WORKERS_LANES")
    """Lanes beside the default one, with their dialer queues: `night=renewals`.

    A lane is a group of dialer queues with an assignment queue and a sequencer of its own. The
    value has to be the same for every process.
    """
    queue_priority: Annotated[str, _parsed_by(priorities)] | None = Field(
        None, alias="ASSIGNMENT_WORKERS_QUEUE_PRIORITY"
    )
    """The order in which the dialer queues are served, for requests that name no dialer queue.

    The value is a list, such as `sales, renewals`. A team can have its own order, after a `;`:
    `sales, renewals; inbound=renewals` sets the order for the team `inbound`. Dialer queues that
    are not in the list come last.
    """
    queue_limit: Annotated[int, Field(ge=1)] | None = Field(
        None, alias="ASSIGNMENT_WORKERS_QUEUE_LIMIT"
    )
    """The greatest number of users in one build of a dialer queue; unset: all who are eligible.

    Each build numbers the eligible users: the user with rank 1 is called first. With a limit, a
    build takes users in two steps. First it goes through the ranks from 1 upwards and takes users
    who can be called before the next build. If these are fewer than the limit, the build goes
    through the ranks from 1 upwards again and takes other users. The order in which users are taken
    is not the order of the calls: all users who were taken are called in the order of their ranks.
    """
    level_minimum: Annotated[int, Field(ge=1)] = Field(20, alias="ASSIGNMENT_WORKERS_LEVEL_MINIMUM")
    """The number of claimable users below which a periodic check rebuilds the dialer queue."""
    level_interval: Seconds = Field(
        timedelta(minutes=15), alias="ASSIGNMENT_WORKERS_LEVEL_INTERVAL_SECONDS"
    )
    """The shortest time from a build of a dialer queue to a rebuild for lack of claimable users.

    The setting `level_minimum` says how few claimable users are a lack.
    """

    quarantine_after: Annotated[int, Field(ge=1)] = Field(
        3, alias="ASSIGNMENT_WORKERS_QUARANTINE_AFTER"
    )
    """The number of suspicious removals within a day at which a user is quarantined.

    A removal is suspicious if a claim finds that the user breaks a rule that is marked
    `suspicious`, such as `not_in_crm`, although the user met the rule when the dialer queue was
    built.
    """
    calling_hours: str | None = Field(None, alias="ASSIGNMENT_WORKERS_CALLING_HOURS")
    """The hours at which users may be called, in the local time of each user.

    Example: `mon-thu 10:00-19:00, fri 10:00-18:00`. Unset: at any hour. The setting `calling_zones`
    has the time zone of users whose own is not known.
    """
    calling_zones: str = Field("Europe/London", alias="ASSIGNMENT_WORKERS_CALLING_ZONES")
    """The default time zone of users, and time zones by the first digits of phone numbers.

    Example: `Europe/London, +1212=America/New_York`. The default is for users without a known zone.
    """
    calling_holidays: str | None = Field(None, alias="ASSIGNMENT_WORKERS_CALLING_HOLIDAYS")
    """A country, or a part of one such as `GB-ENG`, on whose public holidays no user is called.

    With several, as in `GB-ENG, US, AU-WA`, each applies to people of that country or part. The
    first also applies to people of all other countries.
    """
    calls_per_day: str | None = Field(None, alias="ASSIGNMENT_WORKERS_CALLS_PER_DAY")
    """The greatest number of calls to a user in 24 h, by dialer queue: `sales=3, renewals=2`."""
    call_cooldown: str | None = Field(None, alias="ASSIGNMENT_WORKERS_CALL_COOLDOWN_SECONDS")
    """The shortest time from a user's last call to the next, by dialer queue: `sales=14400`."""
    attempts_maximum: Annotated[int, Field(ge=1)] | None = Field(
        None, alias="ASSIGNMENT_WORKERS_ATTEMPTS_MAXIMUM"
    )
    """The greatest total number of calls to a user; unset: no limit.

    The count begins when the user's score row is created. Every call that an agent completes
    counts, whatever its outcome. A user with this many calls is not offered any more, also not for
    a callback or a missed call.
    """
    offer_gap: Seconds | None = Field(None, alias="ASSIGNMENT_WORKERS_OFFER_GAP_SECONDS")
    """The shortest time between two offers of the same user, to the same agent or to two agents.

    The time is counted from the beginning of the earlier offer. Unset: no such limit. The way in
    which the earlier offer ended does not matter: the limit also applies if the agent gave the user
    back.
    """

    message_maximum: Annotated[int, Field(ge=1_000_000, le=100_000_000)] = Field(
        1_000_000, alias="ASSIGNMENT_WORKERS_MESSAGE_MAXIMUM_BYTES"
    )
    """The largest message that is read, in bytes; a larger one becomes a dead letter unread.

    Reading a message delays all messages behind it.
    """
    request_retention: Annotated[timedelta, _seconds(3600)] = Field(
        timedelta(days=7), alias="ASSIGNMENT_WORKERS_REQUEST_RETENTION_SECONDS"
    )
    """The time for which the answer to a message is stored, in case the message arrives again.

    It must exceed the longest time that a message can be under way while a sequencer leads. While
    no sequencer leads, answers are stored longer than this (`assignment.generations.purge`).
    """
    generation_retention: Seconds = Field(
        timedelta(hours=1), alias="ASSIGNMENT_WORKERS_GENERATION_RETENTION_SECONDS"
    )
    """The time for which a replaced build's users, with their positions, are stored."""
    text_retention: Annotated[timedelta, _seconds(86_400)] = Field(
        timedelta(days=90), alias="ASSIGNMENT_WORKERS_TEXT_RETENTION_SECONDS"
    )
    """The time for which texts that people typed, and phone numbers of suppressions, are stored.

    The notes of an assignment are stored for this time after the end of the assignment. The phone
    number and the typed reasons of a suppression are stored without a limit until the suppression
    is lifted, and for this time after that. The typed texts of an event are stored for this time
    after the event, or for the time `history_retention` if that is shorter.
    """
    history_retention: Annotated[timedelta, _seconds(86_400)] = Field(
        timedelta(days=90), alias="ASSIGNMENT_WORKERS_HISTORY_RETENTION_SECONDS"
    )
    """The time for which job runs, events, and dead letters in any state are stored.

    At least a day, because `doctor` looks for the events of the last day.
    """

    environment: Annotated[str, Field(pattern=r"^[^\x00-\x1f]{1,40}$")] | None = Field(
        None, alias="ASSIGNMENT_WORKERS_ENVIRONMENT"
    )
    """The name of this installation in the dashboard's title bar, such as `production`."""
    gateway_port: Port = Field(8000, alias="ASSIGNMENT_WORKERS_GATEWAY_PORT")
    """The port that the gateway listens on."""
    gateway_host: str = Field("127.0.0.1", alias="ASSIGNMENT_WORKERS_GATEWAY_HOST")
    """The address that the gateway listens on."""
    gateway_tokens: Literal["required", "off"] | None = Field(
        None, alias="ASSIGNMENT_WORKERS_GATEWAY_TOKENS"
    )
    """`required`: each call needs a token. `off`: every caller may do everything without one.

    `off` is accepted only with the embedded servers on a loopback address. Unset: `required`.
    """
    gateway_origins: str | None = Field(None, alias="ASSIGNMENT_WORKERS_GATEWAY_ORIGINS")
    """Origins whose pages may call the gateway, separated by commas; unset: none."""
    allowed_hosts: str | None = Field(None, alias="ASSIGNMENT_WORKERS_ALLOWED_HOSTS")
    """Host names by which callers reach the gateway and Flower, separated by commas.

    `.example.com`: every name below it; `*`: any. IP addresses and `localhost` need not be named.
    """
    certificates: Annotated[str, AfterValidator(_certificates)] | None = Field(
        None, alias="ASSIGNMENT_WORKERS_CERTIFICATES"
    )
    """Further TLS certificates whose expiry is watched, such as that of the gateway's proxy.

    PEM files, and `https://` addresses of servers, separated by commas. The certificates that
    PostgreSQL, `rediss://` and `amqps://` servers show, and the certificate files that the servers'
    addresses name, are watched anyway.
    """
    gateway_agent_rate: Annotated[float, Field(gt=0, le=1_000_000)] = Field(
        20.0, alias="ASSIGNMENT_WORKERS_GATEWAY_AGENT_RATE"
    )
    """The API calls per second that the gateway accepts for one agent."""
    gateway_token_rate: Annotated[float, Field(gt=0, le=1_000_000)] = Field(
        2_000.0, alias="ASSIGNMENT_WORKERS_GATEWAY_TOKEN_RATE"
    )
    """The API calls per second that the gateway accepts with one token."""
    gateway_refusal_rate: Annotated[float, Field(gt=0, le=1_000_000)] = Field(
        10.0, alias="ASSIGNMENT_WORKERS_GATEWAY_REFUSAL_RATE"
    )
    """The limit on the invalid API calls from one address, as an average number per second.

    A call is invalid if it needs a token or a session and has no valid one. The gateway refuses
    every invalid call. As long as an address stays within the limit, the gateway refuses its
    invalid calls at once. After a pause, an address may make up to twice this number of invalid
    calls at the same moment. While an address exceeds the limit, the gateway answers each further
    call from the address with status 429, about a second late, and does not look up the call's
    token. But the gateway still accepts a call if the call's token or session was valid when the
    gateway last looked it up. The paths `/healthz` and `/readyz` are always served.
    """
    gateway_proxies: str | None = Field(None, alias="ASSIGNMENT_WORKERS_GATEWAY_PROXIES")
    """Addresses or networks of proxies whose `X-Forwarded-For` is trusted; unset: none."""
    metrics_port: Port | None = Field(None, alias="ASSIGNMENT_WORKERS_METRICS_PORT")
    """The port of the metrics of a sequencer, maintenance or heartbeats worker, or beat.

    Unset: these processes serve no metrics. Each process needs a port of its own. `up` assigns
    consecutive ports, from this one on.
    """
    metrics_host: str = Field("127.0.0.1", alias="ASSIGNMENT_WORKERS_METRICS_HOST")
    """The address that a process with a metrics port listens on."""
    log_format: Literal["logfmt", "json", "console"] = Field(
        "logfmt", alias="ASSIGNMENT_WORKERS_LOG_FORMAT"
    )
    """The format of log lines on standard error; `console` is for people."""
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", alias="ASSIGNMENT_WORKERS_LOG_LEVEL"
    )
    """The lowest level that is logged; `debug` logs each message of the assignment queue."""

    flower_port: Port = Field(5555, alias="ASSIGNMENT_WORKERS_FLOWER_PORT")
    """The port that Flower listens on."""
    flower_host: str = Field("127.0.0.1", alias="ASSIGNMENT_WORKERS_FLOWER_HOST")
    """The address that Flower listens on."""
    flower_url: Annotated[str, _address("http", "https")] | None = Field(
        None, alias="ASSIGNMENT_WORKERS_FLOWER_URL"
    )
    """Flower's address for operators' browsers.

    Unset: only a dashboard that `up` runs has a link to Flower.
    """
    flower_basic_auth: Annotated[str, Field(pattern=r"^[^:]+:.+$")] | None = Field(
        None, alias="ASSIGNMENT_WORKERS_FLOWER_BASIC_AUTH"
    )
    """`user:password`, the login of Flower; unset: `up` makes one."""
    stack_token: Annotated[str, Field(pattern=r"^aw_stack_[\w-]{32,}$")] | None = Field(
        None, alias="ASSIGNMENT_WORKERS_STACK_TOKEN"
    )
    """The bearer token that may do everything on the stack.

    The command `up` sets it; `up` stores the token in the directory of the stack.
    """
    embedded: bool = Field(False, alias="ASSIGNMENT_WORKERS_EMBEDDED")
    """True if `up` runs PostgreSQL and Valkey itself, on loopback; set by `up`."""
    celery_config: Path | None = Field(None, alias="ASSIGNMENT_WORKERS_CELERY_CONFIG")
    """The Celery configuration file.

    Unset: `celeryconfig.py` in the working directory, else the packaged one.
    """

    dialer_config: Path | None = Field(None, alias="ASSIGNMENT_WORKERS_DIALER_CONFIG")
    """The file that defines the dialer queues, their rules and the outcomes.

    Unset: `dialerconfig.py` in the working directory, else the packaged one.
    """

    demo_seed: int = Field(2064, alias="ASSIGNMENT_WORKERS_DEMO_SEED")
    """The seed of the demo CRM: the same seed gives the same users."""
    demo_users: Annotated[int, Field(ge=5000, le=10_000_000)] = Field(
        6000, alias="ASSIGNMENT_WORKERS_DEMO_USERS"
    )
    """The number of users that the demo CRM has for each of its two dialer queues."""

    def of(self, queue: str) -> Settings:
        """Return the settings of one dialer queue: its own, or the general ones if it has none.

        The general settings are this object.
        """
        return self.of_queues.get(queue, self)

    @property
    def of_queues(self) -> Mapping[str, Settings]:
        """The settings of the dialer queues that have settings of their own, by queue name."""
        return {}

    def served(self, queues: Collection[str], team: str | None) -> list[str]:
        """Return `queues`, the dialer queues, in the order in which they serve agents of `team`.

        If `team` is None, the order is that for agents without a team.
        """
        first = priorities(self.queue_priority) if self.queue_priority else {}
        order = first.get(team, first.get(None, ()))
        return [
            *(each for each in order if each in queues),
            *(each for each in queues if each not in order),
        ]

    @property
    def first_lease(self) -> timedelta:
        """The time within which a new assignment must be accepted.

        It is the shorter of the settings `offer` and `lease`.
        """
        return min(self.offer, self.lease)

    @property
    def outcome_changes(self) -> dict[str, dict[str, Any]]:
        """The changed properties of each call outcome in the setting `outcomes`, with their values.

        The keys are the names of outcomes. Properties that keep their defaults are not included.
        """
        changes = _OUTCOMES.validate_json(self.outcomes)
        return {name: each.model_dump(exclude_unset=True) for name, each in changes.items()}

    @property
    def signing_key(self) -> str | None:
        """The key that signs operators' commands; None: commands are not signed."""
        return self.command_key or self.stack_token

    @property
    def database(self) -> str:
        """The value of `database_url`. Raises `UsageError` if it is not set."""
        return _needed("DATABASE_URL", self.database_url)

    @property
    def redis(self) -> str:
        """The value of `redis_url`. Raises `UsageError` if it is not set."""
        return _needed("REDIS_URL", self.redis_url)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Read all settings from the environment variables in `environment`.

        An empty value counts as unset. An address or a secret may be in a file, whose path is in
        the variable with the suffix `_FILE`. Raises `UsageError`, with a line that names the
        variable, for an invalid value, for a file that cannot be read, and for a variable with our
        prefix that is not a setting.
        """
        known = {field.alias for field in cls.model_fields.values() if field.alias}
        parameters: dict[str, Any] = {}
        for name, value in _with_files(environment, known):
            if name in known:
                if value != "":
                    parameters[name] = value
            elif name.startswith(PREFIX):
                raise UsageError(_unknown(name, known))
        try:
            return cls.model_validate(parameters)
        except ValidationError as error:
            first = error.errors()[0]
            variable = str(first["loc"][0])
            reason = plain(first["msg"])
            raise UsageError(
                f"{variable}={_shown(variable, parameters[variable])}: {reason}"
            ) from None


def _needed(variable: str, value: str | None) -> str:
    if value is None:
        raise UsageError(
            f"{variable} is not set: a process of its own is told where its servers are"
        )
    return value


def _with_files(environment: Mapping[str, str], known: set[str]) -> Iterator[tuple[str, str]]:
    """Yield the name and the value of each environment variable, with secrets read from files.

    A variable `X_FILE`, where `X` is the variable of a secret, has the path of a file. `X` is
    yielded in its place, with the content of the file as the value.
    """
    for name, value in environment.items():
        of = name.removesuffix("_FILE")
        if of == name or of not in known or not _is_secret(of):
            yield name, value
        elif value == "":
            continue
        elif environment.get(of):
            raise UsageError(f"{of} and {name} are both set; one of them is needed")
        else:
            try:
                yield of, Path(value).read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not a text in UTF-8"
                raise UsageError(f"{name}={value!r}: the file cannot be read: {reason}") from None


def _unknown(name: str, known: set[str]) -> str:
    begun = sorted(each for each in known if each.startswith(name))
    close = begun or difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"settings: {', '.join(sorted(known))}"
    return f"{name} is not a setting; {hint}"


def _shown(variable: str, value: str) -> str:
    """Return the value of an environment variable as an error message shows it.

    The result for an address or a secret is `(not shown)`.
    """
    return "(not shown)" if _is_secret(variable) else repr(value)


def _is_secret(variable: str) -> bool:
    """Return True for a variable with a secret, or an address that may have a password."""
    return variable.endswith(("_URL", "_AUTH", "_TOKEN", "_PASSWORD", "_KEY"))
