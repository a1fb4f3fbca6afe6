"""The parts of the process's dialer that are read by name, filled once when the process starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


class Loaded(Mapping[str, T]):
    """A read-only mapping that has no values until a dialer is loaded.

    Reading it before that raises `RuntimeError`, so that no process works by the rules of another
    dialer than the configured one.
    """

    def __init__(self) -> None:
        self._values: Mapping[str, T] | None = None

    def fill(self, values: Mapping[str, T]) -> None:
        """Replace the values of the mapping."""
        self._values = values

    def __getitem__(self, name: str) -> T:
        return self._given()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._given())

    def __len__(self) -> int:
        return len(self._given())

    def _given(self) -> Mapping[str, T]:
        if self._values is None:
            raise RuntimeError("no dialer is loaded in this process: see dialer.loading.load")
        return self._values
