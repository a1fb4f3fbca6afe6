"""The common log: whole lines with a name, coloured only for a terminal that wants it."""

from __future__ import annotations

import io
import os
import pty
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from assignment_workers.devstack.log import Log
from tests.devstack.support import Runs, child

ESCAPE = "\033["


@pytest.fixture
def terminal() -> Iterator[tuple[TextIO, int]]:
    """A terminal to write to, and the descriptor where what it shows is read."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:
        yield stream, ours
    os.close(ours)


def test_lines_are_prefixed_with_the_name_in_columns() -> None:
    output = io.StringIO()
    log = Log(output, colour=True)
    log.introduce("beat", "sequencer")
    log.write("beat", "tick")
    log.write("sequencer", "leads")
    first, second = output.getvalue().splitlines()
    assert first.endswith("beat      | tick")
    assert second.endswith("sequencer | leads")
    assert ESCAPE not in first


def test_a_terminal_gets_colours(terminal: tuple[TextIO, int]) -> None:
    stream, shown = terminal
    Log(stream, colour=True).write("beat", "tick")
    assert ESCAPE in os.read(shown, 1000).decode()


def test_a_terminal_that_wants_no_colours_gets_none(terminal: tuple[TextIO, int]) -> None:
    stream, shown = terminal
    Log(stream, colour=False).write("beat", "tick")
    told = os.read(shown, 1000).decode()
    assert "tick" in told
    assert ESCAPE not in told


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_no_color_is_honoured_by_a_stack_on_a_terminal(
    runs: Runs, terminal: tuple[TextIO, int], no_color: str, coloured: bool
) -> None:
    from tests.devstack.support import NO_SERVERS

    stream, shown = terminal
    runs.start(child("worker"), env=NO_SERVERS | {"NO_COLOR": no_color}, stdout=stream.fileno())
    told = ""
    while "works" not in told:
        told += os.read(shown, 1000).decode()
    assert (ESCAPE in told) is coloured


def test_what_is_logged_goes_on_when_nobody_reads_the_log() -> None:
    reads, writes = os.pipe()
    with os.fdopen(writes, "w") as stream:
        log = Log(stream, colour=True)
        os.close(reads)
        log.write("beat", "tick")
        log.write("beat", "tick")
        with pytest.raises(BrokenPipeError):
            stream.close()


def test_a_quiet_stream_has_what_is_said_and_the_files_have_all(tmp_path: Path) -> None:
    output = io.StringIO()
    log = Log(output, colour=False, folder=tmp_path / "logs", verbose=False)
    log.write("beat", "tick")
    log.note("beat started")
    log.say("stopping")
    log.close()
    assert output.getvalue() == "stopping\n"
    assert (tmp_path / "logs/beat.log").read_text() == "tick\n"
    ours = (tmp_path / "logs/up.log").read_text().splitlines()
    assert [line.split(maxsplit=2)[2] for line in ours] == ["beat started", "stopping"]


def test_a_file_that_grew_is_set_aside_and_the_oldest_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("assignment_workers.devstack.log.FILE_BYTES", 40)
    log = Log(io.StringIO(), colour=False, folder=tmp_path, verbose=False)
    for number in range(20):
        log.write("beat", f"tick number {number:02}, and more")
    log.close()
    files = sorted(each.name for each in tmp_path.iterdir())
    assert files == ["beat.log", "beat.log.1", "beat.log.2", "beat.log.3"]
    assert (tmp_path / "beat.log").read_text() == "tick number 19, and more\n"


def test_a_process_that_fails_shows_its_last_lines_on_a_quiet_stream(runs: Runs) -> None:
    from tests.devstack.support import NO_SERVERS

    fails = "print('began'); import sys; sys.exit('the reason')"
    run = runs.start(child("worker", fails), env=NO_SERVERS, verbose=False)
    assert run.code(seconds=90) == 1
    said = run.said()
    assert "  worker: began\n  worker: the reason\n" in said
    assert "worker started" not in said
    assert "the reason" in (runs.home / "logs/worker.log").read_text()
