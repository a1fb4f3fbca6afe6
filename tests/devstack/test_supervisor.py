"""What runs is kept running, and ended in order: stacks of small programs, without servers."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from tests.devstack.support import NO_SERVERS, RUN, Run, Runs, child, none_runs, wait_until

SIGNALLED = """
import signal, sys, time
def told(number, _):
    print('got', signal.Signals(number).name)
    if number == signal.SIGTERM:
        time.sleep({delay}); sys.exit()
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, told)
print('works')
while True: time.sleep(600)
"""
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + RUN
WITH_A_CHILD_OF_ITS_OWN = f"""
import subprocess, sys
print('grandchild', subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]).pid)
{RUN}
"""


def grandchild(run: Run) -> int:
    run.wait_for("grandchild ")
    words = next(line for line in run.said().splitlines() if "grandchild " in line).split()
    return int(words[-1])


def test_a_child_that_ends_is_started_again_at_once_and_then_after_a_pause(runs: Runs) -> None:
    run = runs.start(child("other"), child("worker", "print('works')"), env=NO_SERVERS)
    said = run.wait_for("worker started", times=3)
    assert "worker ended with exit status 0; it is started again at once" in said
    assert "worker ended with exit status 0; it is started again in 1 s" in said
    assert said.count("other started") == 1


def test_a_killed_child_is_named_with_its_signal_and_started_again(runs: Runs) -> None:
    run = runs.start(child("worker"), env=NO_SERVERS)
    run.ready()
    os.kill(run.pid_of("worker"), signal.SIGKILL)
    said = run.wait_for("worker started", times=2)
    assert "worker ended with signal SIGKILL; it is started again at once" in said


def test_what_a_killed_child_had_started_is_ended_before_the_next(runs: Runs) -> None:
    run = runs.start(child("worker", WITH_A_CHILD_OF_ITS_OWN), env=NO_SERVERS)
    left = grandchild(run)
    os.kill(run.pid_of("worker"), signal.SIGKILL)
    run.wait_for("worker started", times=2)
    assert none_runs([left])


def test_a_child_that_keeps_failing_at_its_start_stops_the_whole_stack(runs: Runs) -> None:
    run = runs.start(child("other"), child("worker", "import sys; sys.exit(3)"), env=NO_SERVERS)
    other = run.pid_of("other")
    assert run.code() == 1
    told = [line for line in run.said().splitlines() if "stopping: " in line]
    assert len(told) == 1
    assert "worker ended with exit status 3, 5 times at its start" in told[0]
    assert "other stopped" in run.said()
    assert none_runs([other])


def test_a_child_that_gives_up_its_place_on_purpose_is_no_failure(
    runs: Runs, tmp_path: Path
) -> None:
    lives = tmp_path / "lives"
    code = f"open({str(lives)!r}, 'a').write('x'); import sys; sys.exit(75)"
    run = runs.start(child("worker", code), env=NO_SERVERS)
    wait_until(lambda: lives.exists() and len(lives.read_text()) >= 5, "five lives", seconds=30)
    run.popen.send_signal(signal.SIGTERM)
    assert run.code() == 0


def test_a_program_that_is_not_there_is_one_clear_line(runs: Runs) -> None:
    run = runs.start({"name": "worker", "argv": ["/no/such/program"]}, env=NO_SERVERS)
    assert run.code() == 1
    assert "stopping: worker cannot be started: " in run.said()
    assert "Traceback" not in run.said()


@contextmanager
def hanging_up(does: signal.Handlers) -> Iterator[None]:
    """What is started here inherits this for SIGHUP, whatever the tests themselves were given."""
    before = signal.signal(signal.SIGHUP, does)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_children_in_reverse_order_each_when_the_last_has_ended(
    runs: Runs, number: signal.Signals
) -> None:
    names = ["sequencer", "maintenance", "beat"]
    code = SIGNALLED.format(delay=0.1)
    with hanging_up(signal.SIG_DFL):
        run = runs.start(*(child(name, code) for name in names), env=NO_SERVERS)
    run.wait_for("works", times=3)
    run.ready()
    run.popen.send_signal(number)
    assert run.code() == 0
    said = run.said()
    events = [f"{number.name}: stopping"]
    for name in reversed(names):
        events += [f"{name.ljust(11)} | got SIGTERM", f"{name} stopped"]
    places = [said.index(event) for event in events]
    assert all(before < after for before, after in pairwise(places))


def test_the_terminal_s_signal_to_the_whole_group_reaches_no_child(runs: Runs) -> None:
    run = runs.start(child("worker", SIGNALLED.format(delay=0)), env=NO_SERVERS)
    run.wait_for("works")
    run.ready()
    os.killpg(run.pid, signal.SIGINT)
    assert run.code() == 0
    assert "got SIGTERM" in run.said()
    assert "got SIGINT" not in run.said()


def test_a_child_that_does_not_end_in_time_is_killed_and_a_line_says_so(runs: Runs) -> None:
    run = runs.start(child("worker", STUBBORN, stop_seconds=0.5), env=NO_SERVERS)
    run.wait_for("works")
    worker = run.pid_of("worker")
    run.popen.send_signal(signal.SIGTERM)
    assert run.code() == 0
    assert "worker did not end within 0.5 s: killed" in run.said()
    assert none_runs([worker])


def test_more_signals_while_it_stops_change_nothing(runs: Runs) -> None:
    run = runs.start(child("worker", SIGNALLED.format(delay=1)), env=NO_SERVERS)
    run.wait_for("works")
    run.ready()
    run.popen.send_signal(signal.SIGINT)
    run.wait_for("got SIGTERM")
    run.popen.send_signal(signal.SIGINT)
    run.popen.send_signal(signal.SIGTERM)
    run.wait_for("already stopping: worker has ")
    assert run.code() == 0
    said = run.said()
    assert said.count("got SIGTERM") == 1
    assert "killed" not in said
    assert "Traceback" not in said
    assert said.splitlines()[-1].endswith(f"the data are kept in {runs.home}")


def test_nothing_is_left_when_the_supervisor_is_killed(runs: Runs, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    code = f"""
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (open({str(asked)!r}, 'w').close(), sys.exit()))
print('works')
while True: time.sleep(600)
"""
    run = runs.start(child("worker", WITH_A_CHILD_OF_ITS_OWN), child("beat", code), env=NO_SERVERS)
    left = grandchild(run)
    run.wait_for("works", times=2)
    run.ready()
    family = [process.pid for process in run.family()]
    assert left in family
    os.kill(run.pid, signal.SIGKILL)
    run.code()
    wait_until(lambda: none_runs(family), "every process to end")
    assert asked.exists()


def test_a_child_that_ignores_its_signal_does_not_outlive_a_killed_supervisor(runs: Runs) -> None:
    run = runs.start(child("worker", STUBBORN), env=NO_SERVERS)
    run.wait_for("works")
    run.ready()
    family = [process.pid for process in run.family()]
    os.kill(run.pid, signal.SIGKILL)
    run.code()
    wait_until(lambda: none_runs(family), "every process to end")


def test_the_home_stays_held_until_a_killed_supervisor_s_children_have_ended(runs: Runs) -> None:
    first = runs.start(child("worker", STUBBORN), env=NO_SERVERS)
    first.wait_for("works")
    first.ready()
    worker = first.pid_of("worker")
    os.kill(first.pid, signal.SIGKILL)
    first.code()
    second = runs.start(child("worker"), env=NO_SERVERS)
    second.wait_for("worker started")
    assert none_runs([worker])


def test_a_stack_whose_log_nobody_reads_any_more_goes_on(runs: Runs, tmp_path: Path) -> None:
    beats = tmp_path / "beats"
    code = f"""
import time
while True:
    print('beat')
    open({str(beats)!r}, 'a').write('x')
    time.sleep(0.01)
"""
    reads, writes = os.pipe()
    run = runs.start(child("worker", code), env=NO_SERVERS, stdout=writes)
    os.close(writes)
    wait_until(beats.exists, "the first beat")
    os.close(reads)
    before = len(beats.read_text())
    wait_until(lambda: len(beats.read_text()) > before + 50, "more beats")
    run.popen.send_signal(signal.SIGTERM)
    assert run.code() == 0


def test_started_under_nohup_it_does_not_end_with_its_terminal(runs: Runs) -> None:
    with hanging_up(signal.SIG_IGN):
        run = runs.start(child("worker"), env=NO_SERVERS)
    run.ready()
    run.popen.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        run.code(seconds=0.5)
    run.popen.send_signal(signal.SIGTERM)
    assert run.code() == 0
    assert "SIGHUP" not in run.said()
