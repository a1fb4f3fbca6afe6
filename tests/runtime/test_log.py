"""The common log: whole lines with a name, coloured only for a terminal that wants it."""

from __future__ import annotations

import io
import os
import pty
from collections.abc import Iterator
from typing import TextIO

import pytest

from assignment_workers.runtime.log import Log
from tests.runtime.support import Runs, child

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
    from tests.runtime.support import NO_SERVERS

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
