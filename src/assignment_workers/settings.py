"""All configuration as one typed object, read once at the edge and passed in."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)

from assignment_workers.errors import UsageError, plain

PREFIX = "ASSIGNMENT_WORKERS_"
ProcessName = Literal["sequencer", "maintenance", "heartbeats", "beat", "flower", "gateway"]
"""A process of a stack."""


def _address(*schemes: str) -> AfterValidator:
    def check(value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in schemes:
            raise ValueError(f"the scheme is {parts.scheme!r}; accepted: {', '.join(schemes)}")
        try:
            _ = parts.port
        except ValueError:  # its words may hold a piece of the password
            raise ValueError(
                "the port is not a number up to 65535; special characters in a password are "
                "written as in %40 for @"
            ) from None
        return value

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
RedisAddress = Annotated[str, _address("redis", "rediss")]
BrokerAddress = Annotated[str, _address("redis", "rediss", "amqp", "amqps")]


def _seconds(least: float) -> BeforeValidator:
    """A whole or decimal number of seconds, `least` or more; a timedelta passes as it is."""

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
    """What of an outcome is not as usual: what was set, and nothing else.

    `review_after` null: no review for being repeated.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    score: Annotated[int, Field(ge=0, le=10**8)] = 0
    delay_seconds: Annotated[int, Field(ge=0, le=10**8)] = 0
    actions: tuple[str, ...] = ()
    review_after: Annotated[int, Field(ge=0, le=10**8)] | None = None
    review_unpromised: bool = False


_OUTCOMES = TypeAdapter(dict[str, _OutcomeChange])


def _outcomes(value: str) -> str:
    """JSON that says of some outcomes what is not as usual; checked here, read where used."""
    try:
        _OUTCOMES.validate_json(value, strict=True)
    except ValidationError:
        raise ValueError(
            """not JSON such as {"no_answer": {"score": 2, "delay_seconds": 7200, "actions":"""
            """ ["send_sms"]}}"""
        ) from None
    return value


def by_team(value: str) -> dict[str | None, int]:
    """Whole numbers for agents: one for all under None, and others by the name of their team."""
    found: dict[str | None, int] = {}
    for part in value.split(","):
        name, equals, said = (each.strip() for each in part.rpartition("="))
        if not said.isdecimal() or not 1 <= int(said) <= 10**8 or bool(equals) != bool(name):
            raise ValueError(
                f"{part.strip()!r}: a whole number from 1, for all, or by team as in unsigned=80"
            )
        found[name or None] = int(said)
    return found


def _by_team(value: str) -> str:
    by_team(value)
    return value


Seconds = Annotated[timedelta, _seconds(0.001)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Settings(BaseModel):
    """What can be set.

    Each field's alias is the environment variable that sets it; durations are seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    database_url: PostgresAddress | None = Field(None, alias="DATABASE_URL")
    """PostgreSQL, the owner of every decision; unset: the embedded server of `up`."""
    redis_url: RedisAddress | None = Field(None, alias="REDIS_URL")
    """Redis or Valkey: messages, results, beat's lock; unset: the embedded server of `up`."""
    broker_url: BrokerAddress | None = Field(None, alias="BROKER_URL")
    """The broker, where it is not REDIS_URL: RabbitMQ, or another Redis."""
    crm_database_url: CrmAddress | None = Field(None, alias="CRM_DATABASE_URL")
    """Where the CRM is; unset: in the schema `crm` of DATABASE_URL."""
    command_key: Annotated[str, Field(min_length=32)] | None = Field(
        None, alias="ASSIGNMENT_WORKERS_COMMAND_KEY"
    )
    """Signs operators' commands: the same for sequencers, gateways and the command line.

    `up` has one of its own.

    A command without the signature is carried out, and recorded as `unauthenticated: …`.
    """
    number_key: Annotated[str, Field(min_length=32)] | None = Field(
        None, alias="ASSIGNMENT_WORKERS_NUMBER_KEY"
    )
    """What forgotten do-not-contact numbers are hashed with: the same for every process, for ever.

    `up` has one of its own.
    """
    worker_password: str | None = Field(None, alias="ASSIGNMENT_WORKERS_WORKER_PASSWORD")
    """`schema migrate --roles` lets the role `assignment_worker` log in with it; unset: not."""
    gateway_password: str | None = Field(None, alias="ASSIGNMENT_WORKERS_GATEWAY_PASSWORD")
    """`schema migrate --roles` lets the role `assignment_gateway` log in with it; unset: not."""
    reader_password: str | None = Field(None, alias="ASSIGNMENT_WORKERS_READER_PASSWORD")
    """`schema migrate --roles` lets the role `assignment_reader` log in with it; unset: not."""
    home: Path = Field(Path(".assignment-workers"), alias="ASSIGNMENT_WORKERS_HOME")
    """The folder of the embedded servers' data, of the logs and of the stack's secret."""

    lock_database_url: PostgresAddress | None = Field(
        None, alias="ASSIGNMENT_WORKERS_LOCK_DATABASE_URL"
    )
    """Where the sequencer holds its lock: the server itself, when DATABASE_URL is a pooler."""

    crm_mapping: str = Field("original", alias="ASSIGNMENT_WORKERS_CRM_MAPPING")
    """How the tables and columns of a CRM elsewhere are named: `original` or `people`."""
    crm_columns: str | None = Field(None, alias="ASSIGNMENT_WORKERS_CRM_COLUMNS")
    """Optional columns of the CRM's users, `country=country_code, time_zone`; unset: none."""
    crm_timeout: Annotated[timedelta, _seconds(0.01)] = Field(
        timedelta(seconds=0.3), alias="ASSIGNMENT_WORKERS_CRM_TIMEOUT_SECONDS"
    )
    """How long a claim waits for an answer of a CRM elsewhere."""
    crm_grace: Seconds | None = Field(None, alias="ASSIGNMENT_WORKERS_CRM_GRACE_SECONDS")
    """While a CRM elsewhere is away, users are judged by facts no older than this; unset: never."""

    lease: Seconds = Field(timedelta(minutes=5), alias="ASSIGNMENT_WORKERS_LEASE_SECONDS")
    """How long an assignment that was accepted lasts without a sign of life."""
    offer: Seconds = Field(timedelta(minutes=2), alias="ASSIGNMENT_WORKERS_OFFER_SECONDS")
    """How long an assignment waits to be accepted."""
    offers_lapsed: Annotated[int, Field(ge=1)] = Field(
        3, alias="ASSIGNMENT_WORKERS_OFFERS_LAPSED_MAXIMUM"
    )
    """How many offers an agent may let lapse in a row before they are set on break."""
    defer_maximum: Seconds = Field(
        timedelta(days=30), alias="ASSIGNMENT_WORKERS_DEFER_MAXIMUM_SECONDS"
    )
    """For how long a user can be deferred at the most."""
    session_calls: Annotated[str, AfterValidator(_by_team)] | None = Field(
        None, alias="ASSIGNMENT_WORKERS_SESSION_CALLS"
    )
    """The most calls in an agent's session, for all or by team: `100, unsigned=80`."""
    call_gap: Annotated[str, AfterValidator(_by_team)] | None = Field(
        None, alias="ASSIGNMENT_WORKERS_CALL_GAP_SECONDS"
    )
    """The least time from an agent's call to their next user, as `session_calls`."""
    break_interval: Annotated[str, AfterValidator(_by_team)] | None = Field(
        None, alias="ASSIGNMENT_WORKERS_BREAK_INTERVAL_SECONDS"
    )
    """How long an agent may work without a break, as `session_calls`."""
    skip_agent: Seconds = Field(timedelta(hours=1), alias="ASSIGNMENT_WORKERS_SKIP_AGENT_SECONDS")
    """How long a skipped user is not offered again to the agent who skipped them."""
    skip_everyone: Seconds = Field(
        timedelta(minutes=15), alias="ASSIGNMENT_WORKERS_SKIP_EVERYONE_SECONDS"
    )
    """How long a skipped user is not offered to anybody."""
    callback_preferred: Seconds = Field(
        timedelta(minutes=10), alias="ASSIGNMENT_WORKERS_CALLBACK_PREFERRED_SECONDS"
    )
    """How long after its time a callback is kept for the agent who promised it."""
    callback_retry: Seconds = Field(
        timedelta(minutes=15), alias="ASSIGNMENT_WORKERS_CALLBACK_RETRY_SECONDS"
    )
    """When a callback is tried again that nobody answered, or whose user may not be called now."""
    phone_region: Annotated[str, Field(pattern=r"^[A-Z]{2}$")] = Field(
        "GB", alias="ASSIGNMENT_WORKERS_PHONE_REGION"
    )
    """Where a phone number without a country code is from: two capital letters."""
    offer_without_number: bool | None = Field(None, alias="ASSIGNMENT_WORKERS_OFFER_WITHOUT_NUMBER")
    """Whether users without a readable number are offered; unset: where no hours are set."""
    outcomes: Annotated[str, AfterValidator(_outcomes)] = Field(
        "{}", alias="ASSIGNMENT_WORKERS_OUTCOMES"
    )
    """Outcomes with another score, delay or actions than the usual, as JSON."""
    lanes: str | None = Field(None, alias="ASSIGNMENT_WORKERS_LANES")
    """Lanes beside the default one, with their dialer queues: `outstanding=outstanding_requests`.

    The same for every process.
    """
    queue_limit: Annotated[int, Field(ge=1)] | None = Field(
        None, alias="ASSIGNMENT_WORKERS_QUEUE_LIMIT"
    )
    """How many users a generation takes at the most; unset: all who are eligible."""
    level_minimum: Annotated[int, Field(ge=1)] = Field(20, alias="ASSIGNMENT_WORKERS_LEVEL_MINIMUM")
    """Fewer claimable users than this and the level check regenerates the dialer queue."""
    level_interval: Seconds = Field(
        timedelta(minutes=15), alias="ASSIGNMENT_WORKERS_LEVEL_INTERVAL_SECONDS"
    )
    """The least time between two regenerations that the level check starts."""

    quarantine_after: Annotated[int, Field(ge=1)] = Field(
        3, alias="ASSIGNMENT_WORKERS_QUARANTINE_AFTER"
    )
    """How often a user fails for an unclear reason within a day before they are set aside."""
    calling_hours: str | None = Field(None, alias="ASSIGNMENT_WORKERS_CALLING_HOURS")
    """Such as `mon-thu 10:00-19:00, fri 10:00-18:00`; unset: at any hour."""
    calling_zones: str = Field("Europe/London", alias="ASSIGNMENT_WORKERS_CALLING_ZONES")
    """Where users are: a zone, and others by phone number, `+1212=America/New_York`."""
    calling_holidays: str | None = Field(None, alias="ASSIGNMENT_WORKERS_CALLING_HOLIDAYS")
    """A country, or a part of it as `GB-ENG`, on whose public holidays nobody is called.

    Several, `GB-ENG, US, AU-WA`: each for people of that country or part, the first for all others.
    """
    calls_per_day: str | None = Field(None, alias="ASSIGNMENT_WORKERS_CALLS_PER_DAY")
    """By dialer queue, `unsigned_users=3, outstanding_requests=2`: calls to a user in 24 hours."""
    call_cooldown: str | None = Field(None, alias="ASSIGNMENT_WORKERS_CALL_COOLDOWN_SECONDS")
    """By dialer queue, `unsigned_users=14400`: the least time since a user's last call."""
    attempts_maximum: Annotated[int, Field(ge=1)] | None = Field(
        None, alias="ASSIGNMENT_WORKERS_ATTEMPTS_MAXIMUM"
    )
    """The most calls to a user; unset: no limit."""
    offer_gap: Seconds | None = Field(None, alias="ASSIGNMENT_WORKERS_OFFER_GAP_SECONDS")
    """The least time from one offer of a user to the next, a released one too; unset: none."""

    message_maximum: Annotated[int, Field(ge=1_000_000, le=100_000_000)] = Field(
        1_000_000, alias="ASSIGNMENT_WORKERS_MESSAGE_MAXIMUM_BYTES"
    )
    """A larger message is a dead letter unread: while one is read, those behind it wait."""
    request_retention: Annotated[timedelta, _seconds(3600)] = Field(
        timedelta(days=7), alias="ASSIGNMENT_WORKERS_REQUEST_RETENTION_SECONDS"
    )
    """How long an answer is kept: longer than its message can be under way while one leads.

    Rows are kept longer while nobody leads: see `assignment.generations.purge`.
    """
    generation_retention: Seconds = Field(
        timedelta(hours=1), alias="ASSIGNMENT_WORKERS_GENERATION_RETENTION_SECONDS"
    )
    """How long a retired generation's entries are kept."""
    text_retention: Annotated[timedelta, _seconds(86_400)] = Field(
        timedelta(days=90), alias="ASSIGNMENT_WORKERS_TEXT_RETENTION_SECONDS"
    )
    """How long notes, typed reasons and the numbers of lifted suppressions are kept."""
    history_retention: Annotated[timedelta, _seconds(86_400)] = Field(
        timedelta(days=90), alias="ASSIGNMENT_WORKERS_HISTORY_RETENTION_SECONDS"
    )
    """How long job runs, dead letters in whatever state, and events are kept.

    A day at the least: `doctor` looks for the events of the last day.
    """

    gateway_port: Port = Field(8000, alias="ASSIGNMENT_WORKERS_GATEWAY_PORT")
    """The port that the gateway listens on."""
    gateway_host: str = Field("127.0.0.1", alias="ASSIGNMENT_WORKERS_GATEWAY_HOST")
    """The address that the gateway listens on."""
    gateway_tokens: Literal["required", "off"] | None = Field(
        None, alias="ASSIGNMENT_WORKERS_GATEWAY_TOKENS"
    )
    """`off` is taken only with the embedded servers on a loopback address; unset: required."""
    gateway_origins: str | None = Field(None, alias="ASSIGNMENT_WORKERS_GATEWAY_ORIGINS")
    """Origins whose pages may call the gateway, with commas between; unset: none."""
    allowed_hosts: str | None = Field(None, alias="ASSIGNMENT_WORKERS_ALLOWED_HOSTS")
    """Names by which callers reach the gateway and Flower, with commas between.

    `.example.com`: every name below it; `*`: any. IP addresses and `localhost` need not be named.
    """
    gateway_agent_rate: Annotated[float, Field(gt=0, le=1_000_000)] = Field(
        20.0, alias="ASSIGNMENT_WORKERS_GATEWAY_AGENT_RATE"
    )
    """Calls a second for one agent."""
    gateway_token_rate: Annotated[float, Field(gt=0, le=1_000_000)] = Field(
        2_000.0, alias="ASSIGNMENT_WORKERS_GATEWAY_TOKEN_RATE"
    )
    """Calls a second with one token."""
    gateway_refusal_rate: Annotated[float, Field(gt=0, le=1_000_000)] = Field(
        10.0, alias="ASSIGNMENT_WORKERS_GATEWAY_REFUSAL_RATE"
    )
    """Calls a second without a good token from one address, before all its others have to wait."""
    gateway_proxies: str | None = Field(None, alias="ASSIGNMENT_WORKERS_GATEWAY_PROXIES")
    """Addresses or networks of proxies whose `X-Forwarded-For` is believed; unset: none."""
    metrics_port: Port | None = Field(None, alias="ASSIGNMENT_WORKERS_METRICS_PORT")
    """Where a sequencer, a maintenance worker or beat tells what it counts; unset: nowhere.

    One process' own. `up` gives each of its processes the next one, from this on.
    """
    metrics_host: str = Field("127.0.0.1", alias="ASSIGNMENT_WORKERS_METRICS_HOST")
    """The address that a process with a metrics port listens on."""
    log_format: Literal["logfmt", "json", "console"] = Field(
        "logfmt", alias="ASSIGNMENT_WORKERS_LOG_FORMAT"
    )
    """The form of the log's lines, on standard error: `console` is for people."""
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", alias="ASSIGNMENT_WORKERS_LOG_LEVEL"
    )
    """`debug` has a line for each message of the assignment queue."""

    flower_port: Port = Field(5555, alias="ASSIGNMENT_WORKERS_FLOWER_PORT")
    """The port that Flower listens on."""
    flower_host: str = Field("127.0.0.1", alias="ASSIGNMENT_WORKERS_FLOWER_HOST")
    """The address that Flower listens on."""
    flower_url: Annotated[str, _address("http", "https")] | None = Field(
        None, alias="ASSIGNMENT_WORKERS_FLOWER_URL"
    )
    """Where operators' browsers find Flower; unset: the dashboard links to it with `up` alone."""
    flower_basic_auth: Annotated[str, Field(pattern=r"^[^:]+:.+$")] | None = Field(
        None, alias="ASSIGNMENT_WORKERS_FLOWER_BASIC_AUTH"
    )
    """`user:password`, the login of Flower; `up` makes one where it is unset."""
    stack_token: Annotated[str, Field(pattern=r"^aw_stack_[\w-]{32,}$")] | None = Field(
        None, alias="ASSIGNMENT_WORKERS_STACK_TOKEN"
    )
    """Set by `up`: the bearer token, from its home, that may do everything on its stack."""
    embedded: bool = Field(False, alias="ASSIGNMENT_WORKERS_EMBEDDED")
    """Set by `up` when both servers are its own, on loopback."""
    celery_config: Path | None = Field(None, alias="ASSIGNMENT_WORKERS_CELERY_CONFIG")
    """The Celery configuration file.

    Unset: `celeryconfig.py` in the working directory, else the packaged one.
    """

    demo_seed: int = Field(2064, alias="ASSIGNMENT_WORKERS_DEMO_SEED")
    """The seed of the demo CRM: the same seed gives the same users."""
    demo_users: Annotated[int, Field(ge=5000, le=10_000_000)] = Field(
        6000, alias="ASSIGNMENT_WORKERS_DEMO_USERS"
    )
    """How many users the demo CRM has in each pool."""

    @property
    def first_lease(self) -> timedelta:
        """How long a new assignment waits to be accepted: never longer than work would last."""
        return min(self.offer, self.lease)

    @property
    def outcome_changes(self) -> dict[str, dict[str, Any]]:
        """What `outcomes` says, by outcome."""
        changes = _OUTCOMES.validate_json(self.outcomes)
        return {name: each.model_dump(exclude_unset=True) for name, each in changes.items()}

    @property
    def signing_key(self) -> str | None:
        """What operators' commands are signed with; None: they are not."""
        return self.command_key or self.stack_token

    @property
    def database(self) -> str:
        """`database_url`, for whom it cannot be unset; raises `UsageError` where it is."""
        return _needed("DATABASE_URL", self.database_url)

    @property
    def redis(self) -> str:
        """`redis_url`, for whom it cannot be unset; raises `UsageError` where it is."""
        return _needed("REDIS_URL", self.redis_url)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Read every variable of ours from `environment`.

        An empty value counts as unset. Raises `UsageError`, one line that names the variable, for a
        value that cannot be used and for a variable with our prefix that is not a setting.
        """
        known = {field.alias for field in cls.model_fields.values() if field.alias}
        parameters: dict[str, Any] = {}
        for name, value in environment.items():
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


def _unknown(name: str, known: set[str]) -> str:
    begun = sorted(each for each in known if each.startswith(name))
    close = begun or difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"settings: {', '.join(sorted(known))}"
    return f"{name} is not a setting; {hint}"


def _shown(variable: str, value: str) -> str:
    """A value fit for a message: addresses and credentials hold passwords, so they are not."""
    secret = variable.endswith(("_URL", "_AUTH", "_TOKEN", "_PASSWORD", "_KEY"))
    return "(not shown)" if secret else repr(value)
