"""The log of a stack's processes: all lines in files, the most important ones on the terminal."""

from __future__ import annotations

import logging
import threading
from datetime import datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

from honcho.colour import get_colours
from honcho.printer import Message, Printer

OURS = "up"
"""The name that the supervisor's own lines have in the log."""
FILE_BYTES = 10_000_000
FILES_KEPT = 3
"""The number of rotated log files per process, besides the current file."""


class _File(RotatingFileHandler):
    """A log file that drops lines while the disk is full, so that the stack continues."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Drop the line that could not be written."""


class Log:
    """Writes lines from any thread to one stream, whole and in the order of their arrival.

    Without `folder`, every line goes to the stream, and there are no files. With `folder`, every
    line goes to a rotated file there, named after its process. If `verbose` is true, every line
    goes to the stream as well. If `verbose` is false, only the lines of `say` go to the stream as
    well, without a prefix.

    In all other cases, a line on the stream has a prefix: the time at which the line is written,
    and the name of the process that wrote the line. If `colour` is true and the stream is a
    terminal, the prefix is coloured. The prefix of the supervisor's own lines is never coloured. In
    the files, only the supervisor's lines get the time, and no line gets the name.

    If the stream is gone (a closed terminal, a broken pipe), the lines for the stream are dropped.
    The processes continue, and the files still get every line.
    """

    def __init__(
        self, output: TextIO, *, colour: bool, folder: Path | None = None, verbose: bool = True
    ) -> None:
        self._lock = threading.Lock()
        self._output = output
        self._printer = Printer(output, colour=colour)
        self._palette = get_colours()
        self._colours: dict[str, str | None] = {OURS: None}
        self._folder = folder
        self._files: dict[str, _File] = {}
        self.verbose = verbose or folder is None

    def introduce(self, *names: str) -> None:
        """Assign a colour to each of these processes, in order; make room for the longest name."""
        with self._lock:
            for name in names:
                self._colour(name)

    def write(self, name: str, line: str) -> None:
        """Write a line of the process `name`."""
        with self._lock:
            self._file(name, line)
            if self.verbose:
                self._print(name, line)

    def note(self, line: str) -> None:
        """Write a line of the supervisor.

        The line goes to the supervisor's log file if the log has a folder. If `verbose` is true,
        the line also goes to the stream, which is the `output` that the log was created with.
        """
        self.write(OURS, line)

    def say(self, line: str) -> None:
        """Write a line for the person who started the stack, to file and stream."""
        with self._lock:
            self._file(OURS, line)
            if self.verbose:
                self._print(OURS, line)
                return
            try:
                self._output.write(f"{line}\n")
                self._output.flush()
            except (OSError, ValueError):
                return

    def close(self) -> None:
        """Close the log files. No method may be called afterwards."""
        with self._lock:
            for file in self._files.values():
                file.close()

    def _print(self, name: str, line: str) -> None:
        message = Message("line", line, datetime.now().astimezone(), name, self._colour(name))
        try:
            self._printer.write(message)
        except (OSError, ValueError):
            return

    def _file(self, name: str, line: str) -> None:
        if self._folder is None:
            return
        if name not in self._files:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            file = _File(
                self._folder / f"{name}.log",
                maxBytes=FILE_BYTES,
                backupCount=FILES_KEPT,
                encoding="utf-8",
            )
            if name == OURS:  # the other processes write the time themselves
                file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
            self._files[name] = file
        self._files[name].emit(logging.makeLogRecord({"msg": line}))

    def _colour(self, name: str) -> str | None:
        if name not in self._colours:
            self._colours[name] = next(self._palette)
        self._printer.width = max(self._printer.width, len(name))
        return self._colours[name]
