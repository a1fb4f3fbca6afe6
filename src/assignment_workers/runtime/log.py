"""One log of many processes: each line with the time and the name of who said it."""

from __future__ import annotations

import threading
from datetime import datetime
from typing import TextIO

from honcho.colour import get_colours
from honcho.printer import Message, Printer

OURS = "up"
"""The name under which the supervisor itself speaks."""


class Log:
    """Lines from any thread, whole and in the order they came, on one stream.

    Prefixes are coloured when the stream is a terminal and `colour` is true. When the stream is
    gone (a closed terminal, a broken pipe) lines are dropped: what is logged goes on.
    """

    def __init__(self, output: TextIO, *, colour: bool) -> None:
        self._lock = threading.Lock()
        self._printer = Printer(output, colour=colour)
        self._palette = get_colours()
        self._colours: dict[str, str | None] = {OURS: None}

    def introduce(self, *names: str) -> None:
        """Make room for these names and give each its colour, in this order."""
        with self._lock:
            for name in names:
                self._colour(name)

    def write(self, name: str, line: str) -> None:
        """One line of a process."""
        with self._lock:
            message = Message("line", line, datetime.now().astimezone(), name, self._colour(name))
            try:
                self._printer.write(message)
            except (OSError, ValueError):
                return

    def say(self, line: str) -> None:
        """One line of the supervisor's own."""
        self.write(OURS, line)

    def _colour(self, name: str) -> str | None:
        if name not in self._colours:
            self._colours[name] = next(self._palette)
        self._printer.width = max(self._printer.width, len(name))
        return self._colours[name]
