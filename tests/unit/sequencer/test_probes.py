"""Probes do not pile up behind what waits, and the worker does not wait while one is sent."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from kombu.exceptions import OperationalError
from redis.exceptions import OutOfMemoryError

from assignment_workers.sequencer import sequencer as module
from assignment_workers.sequencer.sequencer import PROBE_SECONDS, Sequencer


def sequencer(send_probe: Callable[[], None], *, is_busy: Callable[[], bool]) -> Sequencer:
    leader = Sequencer(
        cast("Any", None),
        cast("Any", None),
        crm=None,
        queue="assignment",
        send_probe=send_probe,
    )
    leader._runner = cast("Any", SimpleNamespace(ran_since=lambda _: is_busy()))
    return leader


def until_sent(leader: Sequencer) -> None:
    if leader._probing is not None:
        leader._probing.join(10)
        assert not leader._probing.is_alive()


def test_of_probes_behind_a_backlog_one_waits_and_an_idle_line_has_its_sign_of_life(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    sent: list[float] = []
    is_busy = True
    leader = sequencer(lambda: sent.append(now), is_busy=lambda: is_busy)

    def go_on(seconds: float) -> None:
        nonlocal now
        for _ in range(round(seconds)):
            now += 1
            leader.probe()
            until_sent(leader)

    go_on(60)
    assert len(sent) == 1, "one behind the backlog"
    leader.probe_came()
    go_on(10)
    assert len(sent) == 2, "the next, once it has come"
    is_busy = False
    go_on(10)
    assert len(sent) == 2 + 10 / PROBE_SECONDS, "lost or expired: nothing else comes along the line"


def test_a_probe_that_the_broker_does_not_confirm_holds_nobody_up_and_no_second_one_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    confirmed = threading.Event()
    sent: list[float] = []

    def send() -> None:
        sent.append(now)
        assert confirmed.wait(10)

    leader = sequencer(send, is_busy=lambda: False)
    for _ in range(10):
        now += PROBE_SECONDS
        leader.probe()
    assert len(sent) == 1
    confirmed.set()
    until_sent(leader)
    now += PROBE_SECONDS
    leader.probe()
    until_sent(leader)
    assert len(sent) == 2


@pytest.mark.parametrize(
    "error", [OperationalError("timed out"), OSError("no route to host"), OutOfMemoryError("OOM")]
)
def test_a_probe_that_cannot_be_sent_is_followed_by_the_next(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    sent: list[float] = []

    def send() -> None:
        sent.append(now)
        raise error

    leader = sequencer(send, is_busy=lambda: False)
    for _ in range(3):
        now += PROBE_SECONDS
        leader.probe()
        until_sent(leader)
    assert len(sent) == 3
