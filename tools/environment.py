"""Installs a lock file into the virtual environment whose Python runs this, and the project itself.

    .venv/bin/python tools/environment.py requirements-run.lock

By uv, which is fetched as a wheel that `requirements-uv.lock` names with its hash; by pip where uv
cannot be had. Nothing is installed that a lock file does not name with its hash: the project
is built by the locked hatchling. An install says one line; one that failed, its last lines.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV_LOCK = "requirements-uv.lock"
LAST_LINES = 15
PIP_ELSEWHERE = (22, 3)
"""The first pip that installs into another environment than its own."""
NOISE = re.compile(
    r"^WARNING: (Location '|Running pip as the 'root' user|The scripts? )|^\[notice\]"
)
FROM_PIP = {"index-url": "UV_DEFAULT_INDEX", "cert": "SSL_CERT_FILE"}
"""pip's settings that uv does not read, and its variables for them."""


class Failed(Exception):
    """A program failed; its message is the end of its output."""


def main(lock: str) -> None:
    """Install the lock file, then the project in place."""
    begun = time.monotonic()
    pip = _pip()
    try:
        install, environment = _with_uv(pip)
        _install(install, lock, environment)
        by = "uv"
    except Failed as why:
        print(f"uv could not install {lock}, so pip does:\n{why}", flush=True)
        _install([*pip, "install", "--quiet"], lock, {})
        by = "pip"
    print(f"Installed {lock} by {by} in {time.monotonic() - begun:.0f} s", flush=True)


def _pip() -> list[str]:
    """pip of the interpreter that this environment was made with, or one of its own."""
    base = os.path.realpath(sys.executable)
    options = ["--disable-pip-version-check", "--python", sys.executable]
    try:
        said = _run([base, "-m", "pip", "--version"])
        version = tuple(int(part) for part in said.split()[1].split(".")[:2])
        if version >= PIP_ELSEWHERE:
            return [base, "-m", "pip", *options]
    except (Failed, IndexError, ValueError):
        pass  # none, or one that says something else: as if there were none
    try:
        _run([sys.executable, "-m", "pip", "--version"])
    except Failed:
        _run([sys.executable, "-m", "ensurepip"])
    return [sys.executable, "-m", "pip", options[0]]


def _with_uv(pip: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The words that install by uv, fetched by pip if it is not there, and its variables."""
    uv = Path(sys.prefix, "bin", "uv")
    pinned = re.search(r"^uv==(\S+)", (ROOT / UV_LOCK).read_text(encoding="utf-8"), re.MULTILINE)
    if not pinned:
        raise Failed(f"{UV_LOCK} names no version of uv")
    if not uv.exists() or _run([str(uv), "--version"]).split()[1] != pinned[1]:
        _run([*pip, "install", "--quiet", "--no-deps", "--require-hashes", "-r", UV_LOCK])
    return [str(uv), "pip", "install", "--python", sys.executable], _pip_settings(pip)


def _pip_settings(pip: Sequence[str]) -> dict[str, str]:
    found = dict(
        re.findall(r"^\S*\.([a-z-]+)='(.*)'$", _run([*pip, "config", "list"]), re.MULTILINE)
    )
    settings = {FROM_PIP[name]: value for name, value in found.items() if name in FROM_PIP}
    return {name: value for name, value in settings.items() if name not in os.environ}


def _install(words: Sequence[str], lock: str, environment: Mapping[str, str]) -> None:
    _run([*words, "--require-hashes", "-r", lock], environment)
    _run([*words, "--no-deps", "--no-build-isolation", "--editable", "."], environment)


def _run(words: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """What the program writes; raises `Failed` with the end of it."""
    try:
        done = subprocess.run(
            words,
            check=False,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise Failed(str(error)) from error
    if done.returncode != 0:
        lines = [line for line in done.stdout.splitlines() if not NOISE.match(line)]
        raise Failed("\n".join(lines[-LAST_LINES:]) or f"exit status {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Failed as failed:
        sys.exit(f"{failed}\nThe packages of {sys.argv[1]} could not be installed")
