"""From a clone to the first assignment, and the start of what is installed, cold and warm.

    python benchmarks/first_run.py [--rounds N] [--empty-cache]

Each round clones this repository's HEAD into a new folder and runs `make run` there until it has
assigned: that is `clone`. Then `up` on a new home (`cold`), and again on that home (`warm`). With
`--empty-cache` nothing that was downloaded before is used. Seconds of the clock, and of the
processor for all that was started; the load average says how quiet the machine was.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OURS = ("ASSIGNMENT_WORKERS_", "DATABASE_URL", "REDIS_URL", "BROKER_URL", "MAKE", "VIRTUAL_ENV")
ASSIGNED = b"assigned"
PATIENCE_SECONDS = 600.0

Figures = tuple[float, float]
"""Seconds of the clock until it had assigned, and of the processor until it had ended."""


def main() -> None:
    """Measure, and print a table."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--empty-cache", action="store_true")
    given = options.parse_args()
    found: dict[str, list[Figures]] = {"clone": [], "cold": [], "warm": []}
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory(prefix="first-run-") as folder:
            for name, figures in measured(Path(folder), empty=given.empty_cache).items():
                found[name].append(figures)
    print(f"load {os.getloadavg()[0]:.1f}, {len(os.sched_getaffinity(0))} processors")
    print("start | seconds, median | least | most | processor's")
    for name, each in found.items():
        seconds, used = (list(column) for column in zip(*each, strict=True))
        print(
            f"{name:5} | {statistics.median(seconds):.1f} | {min(seconds):.1f} | {max(seconds):.1f}"
            f" | {statistics.median(used):.1f}"
        )


def measured(folder: Path, *, empty: bool) -> dict[str, Figures]:
    """One round in this folder."""
    inherited = os.environ.items()  # noqa: TID251 - handed on
    environment = {name: each for name, each in inherited if not name.startswith(OURS)}
    environment["ASSIGNMENT_WORKERS_FLOWER_PORT"] = str(_free_port())
    environment["ASSIGNMENT_WORKERS_GATEWAY_PORT"] = str(_free_port())
    if empty:
        environment |= {"UV_CACHE_DIR": str(folder / "cache"), "PIP_NO_CACHE_DIR": "1"}
    clone = folder / "clone"
    begun = time.monotonic()
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    cloned = time.monotonic() - begun
    make = [shutil.which("make") or "make", "--no-print-directory", "run"]
    seconds, used = _until_assigned(make, clone, environment)
    up = [str(clone / ".venv/bin/assignment-workers"), "up"]
    home = environment | {"ASSIGNMENT_WORKERS_HOME": str(folder / "home")}
    return {
        "clone": (cloned + seconds, used),
        "cold": _until_assigned(up, clone, home),
        "warm": _until_assigned(up, clone, home),
    }


def _until_assigned(words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Figures:
    before, begun = _used(), time.monotonic()
    process = subprocess.Popen(
        words,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    said = []
    seconds = None
    try:
        for line in process.stdout or ():
            said.append(line)
            if line.startswith(ASSIGNED):
                seconds = time.monotonic() - begun
                break
            if time.monotonic() > begun + PATIENCE_SECONDS:
                break
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        process.communicate()
    if seconds is None:
        raise SystemExit(f"{words[0]} assigned nobody:\n{b''.join(said).decode(errors='replace')}")
    return seconds, _used() - before


def _used() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


if __name__ == "__main__":
    main()
