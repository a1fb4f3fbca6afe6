"""Load the Python files that an operator writes: `dialerconfig.py` and `celeryconfig.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType


def run(path: Path, name: str) -> ModuleType:
    """Run the file as it is now, and return it as the module `name`.

    Unlike an import, this function neither reads nor writes Python's cache of compiled files. The
    cache detects a change only by the file's size and by the second in which the file was saved, so
    it can miss the later of two saves within a second. Raises what the file raises, and `OSError`
    if the file cannot be read.
    """
    code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # for classes of the file that ask for their module
    exec(code, vars(module))  # noqa: S102 - the operator's own file
    return module
