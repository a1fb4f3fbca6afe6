"""No password of the configuration is shown, by whichever name a setting has it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from assignment_workers.settings import Settings
from assignment_workers.tasks.app import create_app

SECRET = "hunter2"
ADDRESSES = st.sampled_from(
    [
        f"redis://:{SECRET}@redis.example:6379/0",
        f"amqps://ann:{SECRET}@rabbit.example/vhost",
        f"sentinel://:{SECRET}@a.example:1;sentinel://:{SECRET}@b.example:1",
        f"https://ann:{SECRET}@flower.example/",
        f"redis://:{SECRET}%40@[::1",
    ]
)
VALUES = st.recursive(
    ADDRESSES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just("at"), inner, max_size=1),
    max_leaves=3,
)
NAMES = st.from_regex(r"\A[a-z]{1,8}(_[a-z]{1,8}){0,2}\Z").filter(lambda name: "__" not in name)
APP = create_app(Settings.from_environment({"REDIS_URL": f"redis://:{SECRET}@127.0.0.1:1/0"}))


def test_the_address_of_redis_is_shown_without_its_password() -> None:
    shown = APP.conf.table(with_defaults=True)
    assert SECRET not in str(shown)
    assert shown["redbeat_redis_url"] == "redis://:**@127.0.0.1:1/0"
    assert SECRET not in APP.conf.humanize(with_defaults=True)
    assert APP.conf.redbeat_redis_url == f"redis://:{SECRET}@127.0.0.1:1/0", "what is used is whole"


@given(NAMES, VALUES)
def test_no_setting_shows_a_password(name: str, value: object) -> None:
    APP.conf.update({f"planted_{name}": value})
    try:
        assert SECRET not in str(APP.conf.table())
    finally:
        APP.conf.pop(f"planted_{name}")
