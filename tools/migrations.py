"""Checks that the migrations are one chain: two branches may each have added the same number.

.venv/bin/python tools/migrations.py
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "src/assignment_workers/schema/migrations/versions"
_SAID = re.compile(r'^(down_revision|revision)(?:: [^=]+)? = (?:"(\w+)"|None)$', re.MULTILINE)


def faults(folder: Path = FOLDER) -> Iterable[str]:
    """A line for each file whose number is another's, or that does not follow the one before."""
    before = ""
    for file in sorted(folder.glob("[0-9]*.py")):
        number = file.name.partition("_")[0]
        said = dict(_SAID.findall(file.read_text(encoding="utf-8")))
        if number == before:
            yield f"{file.name}: another migration has the number {number} too"
        elif said.get("revision") != number:
            yield f"{file.name}: its revision is {said.get('revision')}, not {number}"
        elif said.get("down_revision") != before:
            yield f"{file.name}: it follows {said.get('down_revision') or 'nothing'}, not {before}"
        before = number


def main() -> int:
    """Prints every fault; the exit code is 1 if there is one."""
    found = list(faults())
    print(*found, sep="\n", end="\n" if found else "", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
