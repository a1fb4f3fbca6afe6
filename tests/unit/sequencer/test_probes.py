"""Probes do not pile up behind what waits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from assignment_workers.sequencer import sequencer as module
from assignment_workers.sequencer.sequencer import PROBE_SECONDS, Sequencer


def test_of_probes_behind_a_backlog_one_waits_and_an_idle_line_has_its_sign_of_life(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    sent: list[float] = []
    leader = Sequencer(
        cast("Any", None),
        cast("Any", None),
        crm=None,
        queue="assignment",
        send_probe=lambda: sent.append(now),
    )
    is_busy = True
    leader._runner = cast("Any", SimpleNamespace(ran_since=lambda _: is_busy))

    def go_on(seconds: float) -> None:
        nonlocal now
        for _ in range(round(seconds)):
            now += 1
            leader.probe()

    go_on(60)
    assert len(sent) == 1, "one behind the backlog"
    leader.probe_came()
    go_on(10)
    assert len(sent) == 2, "the next, once it has come"
    is_busy = False
    go_on(10)
    assert len(sent) == 2 + 10 / PROBE_SECONDS, "lost or expired: nothing else comes along the line"
