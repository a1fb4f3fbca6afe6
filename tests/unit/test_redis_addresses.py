"""Addresses with Sentinels: kombu, Celery and our own clients are led to the same servers."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.utils.url import parse_url
from redis import Redis
from redis.exceptions import ReadOnlyError, ResponseError

from assignment_workers.addresses import SentinelAddress, check_address, shown, without_password
from assignment_workers.client import Client
from assignment_workers.client.wire import redis_clients
from assignment_workers.client.wire.redis_clients import (
    async_redis_client,
    is_demoted,
    redis_client,
)
from assignment_workers.errors import UsageError
from assignment_workers.settings import Settings
from assignment_workers.tasks.app import create_app

SECRET = "hunter2"
HOSTS = (
    st.from_regex(r"\A[a-z]{1,8}\Z")
    | st.ip_addresses(v=4).map(str)
    | st.ip_addresses(v=6).map(lambda host: f"[{host}]")
)
PASSWORDS = st.text("aZ9 @:/?#;%&=+é", max_size=6).map(lambda word: f"{word}{SECRET}")


@settings(max_examples=40)
@given(
    sentinels=st.lists(st.tuples(HOSTS, st.integers(1, 65_535)), min_size=1, max_size=4),
    password=PASSWORDS,
    user=st.sampled_from(["", "ann"]),
    db=st.integers(0, 15),
    each=st.booleans(),
    own=PASSWORDS,
)
def test_everybody_is_led_to_the_same_servers(  # noqa: PLR0917 - what is drawn
    sentinels: list[tuple[str, int]], password: str, user: str, db: int, each: bool, own: str
) -> None:
    """User and password may be written once or with each Sentinel."""
    at = f"{user}:{quote(password, safe='')}@"
    parts = [
        f"sentinel://{at if each or not place else ''}{host}:{port}/{db}"
        for place, (host, port) in enumerate(sentinels)
    ]
    url = f"{';'.join(parts)}?master_name=dialer&sentinel_password={quote(own, safe='')}"
    check_address(url, "sentinel")
    assert SECRET not in without_password(url)
    assert SECRET not in shown(url)
    hosts = [(host.strip("[]"), port) for host, port in sentinels]

    app: Any = create_app(Settings.from_environment({"REDIS_URL": url}))
    assert SECRET not in str(app.conf.table())
    for setting in ("broker", "result_backend"):
        given = app.conf["broker_url" if setting == "broker" else setting].split(";")
        said = [parse_url(one) for one in given]
        assert [(one["hostname"], one["port"]) for one in said] == hosts
        for one in said:
            assert (one["userid"] or "", one["password"], one["virtual_host"]) == (
                user,
                password,
                str(db),
            )
        options = app.conf[f"{setting}_transport_options"]
        assert options["master_name"] == "dialer"
        assert options["sentinel_kwargs"]["password"] == own
        assert options["sentinel_kwargs"]["retry"].get_retries() == 0, "the next one is asked"
    for client in (redis_client(url), async_redis_client(url), app.redbeat_redis):
        pool: Any = client.connection_pool
        asked = [one.connection_pool.connection_kwargs for one in pool.sentinel_manager.sentinels]
        assert [(one["host"], one["port"]) for one in asked] == hosts
        assert {one["password"] for one in asked} == {own}
        assert {one["retry"].get_retries() for one in asked} == {0}
        to = pool.connection_kwargs
        assert to["socket_connect_timeout"] <= 2.0, "the lost primary may be named for a moment"
        assert (to["username"] or "", to["password"], to["db"]) == (user, password, db)
        assert pool.service_name == "dialer"


def test_without_a_query_the_name_is_that_of_redis_own_examples() -> None:
    assert SentinelAddress.read("sentinel://a").master_name == "mymaster"
    assert SentinelAddress.read("sentinel://a;sentinel://b").sentinels == (
        ("a", 26_379),
        ("b", 26_379),
    )


def test_tls_is_for_the_sentinels_and_the_servers() -> None:
    url = "sentinel://a/0?ssl_ca_certs=/ca.pem&ssl_cert_reqs=CERT_REQUIRED"
    app = create_app(Settings.from_environment({"REDIS_URL": url}))
    expected = {"ssl_ca_certs": "/ca.pem", "ssl_cert_reqs": "required"}
    assert app.conf.broker_use_ssl == app.conf.redis_backend_use_ssl == expected
    assert app.conf.broker_transport_options["sentinel_kwargs"]["ssl"] is True
    made: Redis = redis_client(url)
    assert made.connection_pool.connection_kwargs.items() >= expected.items()


def test_a_certificate_is_asked_for_unless_the_address_says_otherwise() -> None:
    app = create_app(Settings.from_environment({"REDIS_URL": "rediss://h/0"}))
    assert app.conf.broker_url == "rediss://h/0?ssl_cert_reqs=required"
    app = create_app(Settings.from_environment({"REDIS_URL": "rediss://h/0?ssl_cert_reqs=none"}))
    assert app.conf.result_backend == "rediss://h/0?ssl_cert_reqs=none"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sentinel://", "needs a host"),
        ("sentinel://a?master=b", "no parameter 'master'"),
        ("sentinel://:hunter2@a;sentinel://:hunter3@b", "several values of password"),
        ("sentinel://a/first", "is a number"),
        ("sentinel://a;redis://b", "accepted: sentinel"),
        ("sentinel://a:hunter2", "the port is not a number"),
    ],
)
def test_what_cannot_be_is_named_at_once(url: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as told:
        Client.connect(url)
    assert "hunter" not in str(told.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ReadOnlyError("You can't write against a read only replica."), True),
        (ResponseError("UNBLOCKED force unblock from blocking operation"), True),
        (ResponseError("WRONGTYPE"), False),
    ],
)
def test_what_a_server_says_that_is_no_longer_the_primary(
    error: ResponseError, expected: bool
) -> None:
    assert is_demoted(error) is expected


def test_the_sentinel_that_answered_one_pool_is_asked_first_by_every_other() -> None:
    """A lost one costs its time-out once, whatever the number of pools of the process."""
    url = "sentinel://a;sentinel://b;sentinel://c?master_name=of-this-test"
    one, other = redis_client(url).connection_pool, async_redis_client(url).connection_pool
    managers: list[Any] = [one.sentinel_manager, other.sentinel_manager]  # type: ignore[attr-defined]

    def asked_first(manager: Any) -> str:
        return str(manager.sentinels[0].connection_pool.connection_kwargs["host"])

    first = managers[0].sentinels
    first[0], first[2] = first[2], first[0]  # as redis-py does once c has answered
    redis_clients._note_answer(one)
    for each in managers:
        redis_clients._ask_first(each)
    assert list(map(asked_first, managers)) == ["c", "c"]
