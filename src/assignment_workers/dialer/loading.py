"""Read and check a `dialerconfig.py`, and make its dialer the one that this process uses."""

from __future__ import annotations

import traceback
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from assignment_workers import python_files
from assignment_workers.dialer.check import problems, unread
from assignment_workers.errors import UsageError
from assignment_workers.policy.dialer import Dialer
from assignment_workers.policy.process_dialer import use
from assignment_workers.settings import Settings

NAME = "dialerconfig.py"
VARIABLE = "ASSIGNMENT_WORKERS_DIALER_CONFIG"
PACKAGED = "assignment_workers.dialers.claims"
"""The name of the module that defines the packaged dialer, which is installed with this project.

The packaged dialer is used if the setting `ASSIGNMENT_WORKERS_DIALER_CONFIG` names no file and the
working directory has no `dialerconfig.py`.
"""

_made: dict[Path, Dialer] = {}


def path_of(settings: Settings) -> Path:
    """Return the path of the dialer's file.

    It is the file that the setting `ASSIGNMENT_WORKERS_DIALER_CONFIG` names. If the setting names
    no file, it is `dialerconfig.py` in the working directory. If there is no such file, it is the
    file of the packaged dialer. Raises `UsageError` if the file that the setting names does not
    exist. Also raises it if the file of the packaged dialer is needed but was not installed.
    """
    if settings.dialer_config is not None:
        if not settings.dialer_config.is_file():
            raise UsageError(f"{VARIABLE}={str(settings.dialer_config)!r}: there is no such file")
        return settings.dialer_config.absolute()
    here = Path(NAME)
    if here.is_file():
        return here.absolute()
    packaged = _packaged()
    if packaged is None:
        raise UsageError(f"there is no {NAME} here, and {VARIABLE} names none")
    return packaged


def is_packaged(settings: Settings) -> bool:
    """Return True if the packaged dialer is used.

    It is used if the setting `ASSIGNMENT_WORKERS_DIALER_CONFIG` names no file and the working
    directory has no `dialerconfig.py`, or if the setting names the packaged dialer's own file.
    Raises `UsageError` if the file that the setting names does not exist. Also raises it if the
    file of the packaged dialer is needed but was not installed.
    """
    return path_of(settings) == _packaged()


def _packaged() -> Path | None:
    try:
        spec = find_spec(PACKAGED)
    except ModuleNotFoundError:  # its package is not installed either
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def load(settings: Settings) -> Dialer:
    """Load the dialer from the configured file, make it the dialer of this process, and return it.

    A file is read once per process. Raises `UsageError`, with one line that names the file, the
    dialer queue and the rule, for a file that cannot be used.
    """
    path = path_of(settings)
    if path not in _made:
        dialer = import_module(PACKAGED).dialer if path == _packaged() else read(path)
        for problem in problems(dialer):
            raise UsageError(f"{path}: {problem}")
        _made[path] = dialer
    for problem in unread(_made[path]) if settings.crm_database_url else ():
        raise UsageError(f"{path}: {problem}")
    use(_made[path])
    return _made[path]


def read(path: Path) -> Dialer:
    """Run the file and return its object `dialer`, unchecked.

    Raises `UsageError`, with one line, if the file cannot be run or defines no such object.
    """
    if not path.is_file() or path.suffix != ".py":
        raise UsageError(f"{path}: not a Python file")
    try:
        module = python_files.run(path, "dialerconfig")
    except Exception as error:
        said = error.msg if isinstance(error, SyntaxError) else error
        reason = " ".join(str(said).split())
        raise UsageError(f"{_position(path, error)}: {type(error).__name__}: {reason}") from error
    dialer = getattr(module, "dialer", None)
    if not isinstance(dialer, Dialer):
        raise UsageError(f"{path}: defines no `dialer`, an object Dialer(queues=…, outcomes=…)")
    return dialer


def _position(path: Path, error: Exception) -> str:
    """Return a text with the path of the file and, if known, the line number of the error."""
    if isinstance(error, SyntaxError):
        return f"{path}, line {error.lineno}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    return f"{path}, line {lines[-1]}" if lines else str(path)
