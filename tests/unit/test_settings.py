"""Settings: each variable's default, what it takes, and the one line for what it does not."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from pydantic import ValidationError

from assignment_workers.errors import UsageError
from assignment_workers.settings import Settings


class Variable(NamedTuple):
    """A variable: its field and default, a good text and what it means, bad texts."""

    field: str
    default: object
    good: str
    value: object
    bad: tuple[str, ...]


POSTGRES = "postgresql://someone:hunter2@db.example:5432/dialer"
MYSQL = "mysql://reader:hunter2@replica.example:3306/crm"
AMQP = "amqps://:hunter2@rabbitmq.example:5671/dialer"
REDIS = "rediss://:hunter2@redis.example:6379/0"
STACK_TOKEN = f"aw_stack_{'x' * 43}"
NOT_SECONDS = ("0", "1e-7", "-1", "nan", "inf", "five minutes", "1e12")
NO_LIMITS = ("0", "ten", "=5", "unsigned=", "1.5")
NOT_COUNTS = ("0", "-3", "2.5", "many")
NOT_PORTS = ("0", "65536", "http")

VARIABLES = {
    "DATABASE_URL": Variable(
        "database_url", None, POSTGRES, POSTGRES, ("mysql://u:hunter2@h/d", "hunter2", "//h/d")
    ),
    "REDIS_URL": Variable("redis_url", None, REDIS, REDIS, ("http://:hunter2@h", "hunter2")),
    "BROKER_URL": Variable("broker_url", None, AMQP, AMQP, ("sqs://u:hunter2@h", "hunter2")),
    "CRM_DATABASE_URL": Variable(
        "crm_database_url", None, MYSQL, MYSQL, ("sqlite:///hunter2", "mysql+aiomysql://hunter2")
    ),
    "ASSIGNMENT_WORKERS_CRM_MAPPING": Variable("crm_mapping", "original", "people", "people", ()),
    "ASSIGNMENT_WORKERS_CRM_COLUMNS": Variable(
        "crm_columns", None, "country=land", "country=land", ()
    ),
    "ASSIGNMENT_WORKERS_CRM_TIMEOUT_SECONDS": Variable(
        "crm_timeout", timedelta(seconds=0.3), "1.5", timedelta(seconds=1.5), NOT_SECONDS
    ),
    "ASSIGNMENT_WORKERS_CRM_GRACE_SECONDS": Variable(
        "crm_grace", None, "900", timedelta(minutes=15), NOT_SECONDS
    ),
    "ASSIGNMENT_WORKERS_COMMAND_KEY": Variable(
        "command_key", None, "k" * 32, "k" * 32, ("hunter2",)
    ),
    "ASSIGNMENT_WORKERS_NUMBER_KEY": Variable("number_key", None, "n" * 32, "n" * 32, ("hunter2",)),
    "ASSIGNMENT_WORKERS_WORKER_PASSWORD": Variable("worker_password", None, "a", "a", ()),
    "ASSIGNMENT_WORKERS_GATEWAY_PASSWORD": Variable("gateway_password", None, "b", "b", ()),
    "ASSIGNMENT_WORKERS_READER_PASSWORD": Variable("reader_password", None, "c", "c", ()),
    "ASSIGNMENT_WORKERS_HOME": Variable(
        "home", Path(".assignment-workers"), "/var/lib/aw", Path("/var/lib/aw"), ()
    ),
    "ASSIGNMENT_WORKERS_LOCK_DATABASE_URL": Variable(
        "lock_database_url", None, POSTGRES, POSTGRES, ("redis://:hunter2@h",)
    ),
    "ASSIGNMENT_WORKERS_LANES": Variable(
        "lanes", None, "outstanding=outstanding_requests", "outstanding=outstanding_requests", ()
    ),
    "ASSIGNMENT_WORKERS_LEASE_SECONDS": Variable(
        "lease", timedelta(minutes=5), "90.5", timedelta(seconds=90.5), NOT_SECONDS
    ),
    "ASSIGNMENT_WORKERS_OFFER_SECONDS": Variable(
        "offer", timedelta(minutes=2), "45", timedelta(seconds=45), NOT_SECONDS
    ),
    "ASSIGNMENT_WORKERS_OFFERS_LAPSED_MAXIMUM": Variable(
        "offers_lapsed", 3, "1", 1, ("0", "-1", "two", "1.5")
    ),
    "ASSIGNMENT_WORKERS_DEFER_MAXIMUM_SECONDS": Variable(
        "defer_maximum", timedelta(days=30), "60", timedelta(minutes=1), NOT_SECONDS
    ),
    "ASSIGNMENT_WORKERS_SESSION_CALLS": Variable(
        "session_calls", None, "100, unsigned=80", "100, unsigned=80", NO_LIMITS
    ),
    "ASSIGNMENT_WORKERS_CALL_GAP_SECONDS": Variable("call_gap", None, "30", "30", NO_LIMITS),
    "ASSIGNMENT_WORKERS_BREAK_INTERVAL_SECONDS": Variable(
        "break_interval", None, "7200", "7200", NO_LIMITS
    ),
    "ASSIGNMENT_WORKERS_SKIP_AGENT_SECONDS": Variable(
        "skip_agent", timedelta(hours=1), "60", timedelta(minutes=1), NOT_SECONDS
    ),
    "ASSIGNMENT_WORKERS_CALLBACK_PREFERRED_SECONDS": Variable(
        "callback_preferred", timedelta(minutes=10), "60", timedelta(minutes=1), NOT_SECONDS
    ),
    "ASSIGNMENT_WORKERS_CALLBACK_RETRY_SECONDS": Variable(
        "callback_retry", timedelta(minutes=15), "60", timedelta(minutes=1), NOT_SECONDS
    ),
    "ASSIGNMENT_WORKERS_OUTCOMES": Variable(
        "outcomes",
        "{}",
        '{"no_answer": {"score": 2, "delay_seconds": 7200}}',
        '{"no_answer": {"score": 2, "delay_seconds": 7200}}',
        (
            "no_answer=2",
            "[]",
            '{"no_answer": 2}',
            '{"no_answer": {"delay": 2}}',
            '{"no_answer": {"score": null}}',
            '{"no_answer": {"actions": "send_sms"}}',
            "{",
        ),
    ),
    "ASSIGNMENT_WORKERS_PHONE_REGION": Variable(
        "phone_region", "GB", "DE", "DE", ("de", "DEU", "44")
    ),
    "ASSIGNMENT_WORKERS_OFFER_WITHOUT_NUMBER": Variable(
        "offer_without_number", None, "true", True, ("perhaps",)
    ),
    "ASSIGNMENT_WORKERS_SKIP_EVERYONE_SECONDS": Variable(
        "skip_everyone", timedelta(minutes=15), "60", timedelta(minutes=1), NOT_SECONDS
    ),
    "ASSIGNMENT_WORKERS_QUEUE_PRIORITY": Variable(
        "queue_priority", None, "b, a; night=a", "b, a; night=a", ("a,,b", "=a", "night=", ";")
    ),
    "ASSIGNMENT_WORKERS_QUEUE_LIMIT": Variable("queue_limit", None, "200", 200, NOT_COUNTS),
    "ASSIGNMENT_WORKERS_LEVEL_MINIMUM": Variable("level_minimum", 20, "1", 1, NOT_COUNTS),
    "ASSIGNMENT_WORKERS_LEVEL_INTERVAL_SECONDS": Variable(
        "level_interval", timedelta(minutes=15), "60", timedelta(minutes=1), NOT_SECONDS
    ),
    "ASSIGNMENT_WORKERS_MESSAGE_MAXIMUM_BYTES": Variable(
        "message_maximum", 1_000_000, "2000000", 2_000_000, NOT_COUNTS
    ),
    "ASSIGNMENT_WORKERS_QUARANTINE_AFTER": Variable("quarantine_after", 3, "5", 5, NOT_COUNTS),
    # What they may hold is judged where they are read: tests/unit/assignment/test_calling.py.
    "ASSIGNMENT_WORKERS_CALLING_HOURS": Variable(
        "calling_hours", None, "mon 10:00-19:00", "mon 10:00-19:00", ()
    ),
    "ASSIGNMENT_WORKERS_CALLING_ZONES": Variable(
        "calling_zones", "Europe/London", "Europe/Paris", "Europe/Paris", ()
    ),
    "ASSIGNMENT_WORKERS_CALLING_HOLIDAYS": Variable("calling_holidays", None, "GB", "GB", ()),
    "ASSIGNMENT_WORKERS_CALLS_PER_DAY": Variable(
        "calls_per_day", None, "unsigned_users=3", "unsigned_users=3", ()
    ),
    "ASSIGNMENT_WORKERS_CALL_COOLDOWN_SECONDS": Variable(
        "call_cooldown", None, "unsigned_users=60", "unsigned_users=60", ()
    ),
    "ASSIGNMENT_WORKERS_ATTEMPTS_MAXIMUM": Variable("attempts_maximum", None, "9", 9, NOT_COUNTS),
    "ASSIGNMENT_WORKERS_OFFER_GAP_SECONDS": Variable(
        "offer_gap", None, "60", timedelta(minutes=1), NOT_SECONDS
    ),
    "ASSIGNMENT_WORKERS_TEXT_RETENTION_SECONDS": Variable(
        "text_retention",
        timedelta(days=90),
        "86400",
        timedelta(days=1),
        (*NOT_SECONDS, "86399"),
    ),
    "ASSIGNMENT_WORKERS_REQUEST_RETENTION_SECONDS": Variable(
        "request_retention",
        timedelta(days=7),
        "3600",
        timedelta(hours=1),
        (*NOT_SECONDS, "3599"),
    ),
    "ASSIGNMENT_WORKERS_GENERATION_RETENTION_SECONDS": Variable(
        "generation_retention", timedelta(hours=1), "60", timedelta(minutes=1), NOT_SECONDS
    ),
    "ASSIGNMENT_WORKERS_HISTORY_RETENTION_SECONDS": Variable(
        "history_retention",
        timedelta(days=90),
        "86400",
        timedelta(days=1),
        (*NOT_SECONDS, "86399"),
    ),
    "ASSIGNMENT_WORKERS_ENVIRONMENT": Variable(
        "environment", None, "Production (EU)", "Production (EU)", ("x" * 41, "two\nlines")
    ),
    "ASSIGNMENT_WORKERS_GATEWAY_PORT": Variable("gateway_port", 8000, "1", 1, NOT_PORTS),
    "ASSIGNMENT_WORKERS_GATEWAY_HOST": Variable(
        "gateway_host",
        "127.0.0.1",
        "192.0.2.1",
        "192.0.2.1",
        (),
    ),
    "ASSIGNMENT_WORKERS_GATEWAY_TOKENS": Variable(
        "gateway_tokens", None, "off", "off", ("maybe", "OFF")
    ),
    "ASSIGNMENT_WORKERS_GATEWAY_ORIGINS": Variable(
        "gateway_origins", None, "https://dialer.example", "https://dialer.example", ()
    ),
    "ASSIGNMENT_WORKERS_ALLOWED_HOSTS": Variable(
        "allowed_hosts", None, "gateway,.example.com", "gateway,.example.com", ()
    ),
    "ASSIGNMENT_WORKERS_CERTIFICATES": Variable(
        "certificates",
        None,
        "https://dialer.example",
        "https://dialer.example",
        ("http://a", "/none"),
    ),
    "ASSIGNMENT_WORKERS_GATEWAY_AGENT_RATE": Variable(
        "gateway_agent_rate", 20.0, "0.5", 0.5, ("0", "-1", "many")
    ),
    "ASSIGNMENT_WORKERS_GATEWAY_TOKEN_RATE": Variable(
        "gateway_token_rate", 2000.0, "10", 10.0, ("0", "-1", "many")
    ),
    "ASSIGNMENT_WORKERS_GATEWAY_REFUSAL_RATE": Variable(
        "gateway_refusal_rate", 10.0, "0.5", 0.5, ("0", "-1", "many")
    ),
    "ASSIGNMENT_WORKERS_GATEWAY_PROXIES": Variable(
        "gateway_proxies", None, "10.0.0.0/8", "10.0.0.0/8", ()
    ),
    "ASSIGNMENT_WORKERS_METRICS_PORT": Variable("metrics_port", None, "9100", 9100, NOT_PORTS),
    "ASSIGNMENT_WORKERS_METRICS_HOST": Variable(
        "metrics_host", "127.0.0.1", "10.0.0.7", "10.0.0.7", ()
    ),
    "ASSIGNMENT_WORKERS_LOG_FORMAT": Variable(
        "log_format", "logfmt", "json", "json", ("xml", "JSON")
    ),
    "ASSIGNMENT_WORKERS_LOG_LEVEL": Variable(
        "log_level", "info", "debug", "debug", ("loud", "INFO")
    ),
    "ASSIGNMENT_WORKERS_FLOWER_PORT": Variable("flower_port", 5555, "65535", 65535, NOT_PORTS),
    "ASSIGNMENT_WORKERS_FLOWER_HOST": Variable(
        "flower_host", "127.0.0.1", "192.0.2.1", "192.0.2.1", ()
    ),
    "ASSIGNMENT_WORKERS_STACK_TOKEN": Variable(
        "stack_token", None, STACK_TOKEN, STACK_TOKEN, ("hunter2", "aw_stack_hunter2")
    ),
    "ASSIGNMENT_WORKERS_FLOWER_URL": Variable(
        "flower_url",
        None,
        "https://flower.example",
        "https://flower.example",
        ("ftp://x", "flower"),
    ),
    "ASSIGNMENT_WORKERS_FLOWER_BASIC_AUTH": Variable(
        "flower_basic_auth", None, "ann:hunter2", "ann:hunter2", ("hunter2", ":hunter2", "ann:")
    ),
    "ASSIGNMENT_WORKERS_EMBEDDED": Variable("embedded", False, "true", True, ("perhaps", "2")),
    "ASSIGNMENT_WORKERS_DIALER_CONFIG": Variable(
        "dialer_config", None, "/etc/dialerconfig.py", Path("/etc/dialerconfig.py"), ()
    ),
    "ASSIGNMENT_WORKERS_CELERY_CONFIG": Variable(
        "celery_config", None, "/etc/celeryconfig.py", Path("/etc/celeryconfig.py"), ()
    ),
    "ASSIGNMENT_WORKERS_DEMO_SEED": Variable("demo_seed", 2064, "-7", -7, ("seven", "1.5")),
    "ASSIGNMENT_WORKERS_DEMO_USERS": Variable(
        "demo_users", 6000, "5000", 5000, ("4999", "10000001", "all")
    ),
}


BAD = [(name, text) for name, variable in VARIABLES.items() for text in variable.bad]


def complaint(environment: dict[str, str]) -> str:
    """What the start stops with."""
    with pytest.raises(UsageError) as caught:
        Settings.from_environment(environment)
    return str(caught.value)


def test_these_are_all_the_variables() -> None:
    fields = Settings.model_fields.items()
    assert {field.alias: name for name, field in fields} == {
        name: variable.field for name, variable in VARIABLES.items()
    }


def test_nothing_has_to_be_set() -> None:
    settings = Settings.from_environment({"PATH": "/bin"})
    assert settings.model_dump() == {each.field: each.default for each in VARIABLES.values()}


@pytest.mark.parametrize("name", VARIABLES)
def test_a_good_value_is_taken(name: str) -> None:
    variable = VARIABLES[name]
    settings = Settings.from_environment({name: variable.good})
    assert getattr(settings, variable.field) == variable.value


@pytest.mark.parametrize("name", VARIABLES)
def test_an_empty_value_counts_as_unset(name: str) -> None:
    assert Settings.from_environment({name: ""}) == Settings.from_environment({})


@pytest.mark.parametrize(("name", "text"), BAD)
def test_a_bad_value_stops_the_start_with_one_line_that_names_the_variable(
    name: str, text: str
) -> None:
    said = complaint({name: text})
    assert said.startswith(f"{name}=")
    assert "\n" not in said
    secret = name.endswith(("_URL", "_AUTH", "_TOKEN", "_KEY"))
    assert (repr(text) in said) is not secret
    assert not secret or "(not shown)" in said


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, text in BAD if "hunter2@" in text]
)
def test_no_password_is_shown(name: str, text: str) -> None:
    assert "hunter2" not in complaint({name: text})


def test_a_bad_address_says_which_schemes_are_accepted() -> None:
    assert complaint({"REDIS_URL": "amqp://h"}) == (
        "REDIS_URL=(not shown): the scheme is 'amqp'; accepted: redis, rediss, sentinel"
    )


SECRETS = [
    name for name in VARIABLES if name.endswith(("_URL", "_AUTH", "_TOKEN", "_PASSWORD", "_KEY"))
]


@pytest.mark.parametrize("name", SECRETS)
def test_an_address_or_a_secret_may_stand_in_a_file(name: str, tmp_path: Path) -> None:
    variable, file = VARIABLES[name], tmp_path / "secret"
    file.write_text(f"{variable.good}\n", encoding="utf-8")
    settings = Settings.from_environment({f"{name}_FILE": str(file), name: ""})
    assert getattr(settings, variable.field) == variable.value
    assert Settings.from_environment({f"{name}_FILE": ""}) == Settings.from_environment({})
    assert complaint({f"{name}_FILE": str(file), name: variable.good}) == (
        f"{name} and {name}_FILE are both set; one of them is needed"
    )
    missing = str(tmp_path / "missing")
    assert complaint({f"{name}_FILE": missing}) == (
        f"{name}_FILE={missing!r}: the file cannot be read: No such file or directory"
    )
    file.write_bytes(b"\xff")
    assert complaint({f"{name}_FILE": str(file)}).endswith("not a text in UTF-8")


@pytest.mark.parametrize("name", [name for name in VARIABLES if name not in SECRETS])
def test_other_settings_have_no_file(name: str) -> None:
    if name.startswith("ASSIGNMENT_WORKERS_"):
        assert complaint({f"{name}_FILE": "/etc/hostname"}).startswith(
            f"{name}_FILE is not a setting"
        )


def test_no_redis_at_all_is_refused_with_the_reason() -> None:
    assert "answers and beat's schedule are in Redis" in complaint({"REDIS_URL": "none"})


def test_a_misspelt_variable_is_refused_with_the_one_that_was_meant() -> None:
    said = complaint({"ASSIGNMENT_WORKERS_LEASE_SECOND": "60"})
    assert said == (
        "ASSIGNMENT_WORKERS_LEASE_SECOND is not a setting; "
        "did you mean ASSIGNMENT_WORKERS_LEASE_SECONDS?"
    )


def test_an_unknown_variable_is_refused_with_all_that_there_are() -> None:
    name = f"ASSIGNMENT_WORKERS_{'X' * 60}"
    said = complaint({name: "hunter2"})
    assert said.startswith(f"{name} is not a setting; settings: ")
    assert all(each in said for each in VARIABLES)
    assert "hunter2" not in said


@pytest.mark.parametrize("variable", ["DATABASE_URL", "REDIS_URL"])
def test_a_process_that_needs_an_address_says_which_is_not_set(variable: str) -> None:
    settings = Settings.from_environment({})
    with pytest.raises(UsageError, match=f"^{variable} is not set: "):
        _ = settings.database if variable == "DATABASE_URL" else settings.redis


def test_settings_do_not_change() -> None:
    settings = Settings.from_environment({})
    with pytest.raises(ValidationError, match="frozen"):
        settings.level_minimum = 1
