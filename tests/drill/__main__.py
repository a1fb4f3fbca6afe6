"""Lose each of three hosts in each way while agents work: the page in docs/benchmarks.

    python -m tests.drill [--broker valkey|rabbitmq] [--only A-killed ...] [--agents N] [--seed N]

Needs root, `ip`, `nsenter` and `unshare`, HAProxy, and for RabbitMQ its Debian package.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

from assignment_workers import logs
from assignment_workers.dialer.loading import load
from assignment_workers.lab.call_centre.plan import Plan
from assignment_workers.lab.call_centre.recorder import Recorder, Sample
from assignment_workers.settings import Settings
from tests.drill import page
from tests.drill.drill import WAYS, go
from tests.drill.hosts import enter
from tests.support.root import ROOT

BROKERS = ("valkey", "rabbitmq")
EVERY = [f"{host}-{how.replace(' ', '-')}" for how in WAYS for host in "ABC"]
RESULTS = ROOT / "docs" / "benchmarks"
LONGEST = 3600.0


def main() -> int:
    """Run the drill and write its page; return 1 if a guarantee broke or a pause was too long."""
    options = argparse.ArgumentParser(
        prog="python -m tests.drill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--broker", choices=BROKERS, default=BROKERS[0])
    options.add_argument("--only", nargs="+", choices=EVERY, default=EVERY, metavar="LOSS")
    options.add_argument("--agents", type=int, default=200)
    options.add_argument("--users", type=int, default=20_000, help="users of each pool")
    options.add_argument("--speed", type=float, default=5.0, help="times as fast as a real day")
    options.add_argument("--seed", type=int, default=27)
    options.add_argument("--out", type=Path, default=RESULTS)
    options.add_argument("--keep", type=Path, help="folder for the logs; else they are removed")
    given = options.parse_args()
    if missing := [each for each in ("ip", "nsenter", "haproxy") if not shutil.which(each)]:
        options.error(f"not installed: {', '.join(missing)}")
    enter([sys.executable, "-m", "tests.drill", *sys.argv[1:]])
    plan = Plan(
        agents=given.agents,
        users=given.users,
        seconds=LONGEST,
        speed=given.speed,
        seed=given.seed,
        chaos=False,
    )
    logs.set_up("console", "info")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    load(Settings.from_environment({}))
    made = given.keep or Path(tempfile.mkdtemp(prefix="drill-"))
    made.mkdir(parents=True, exist_ok=True)
    try:
        drilled = go(
            made,
            plan,
            rabbitmq=given.broker == "rabbitmq",
            chosen=lambda host, how: f"{host}-{how.replace(' ', '-')}" in given.only,
            show=_show,
        )
    finally:
        if given.keep is None:
            shutil.rmtree(made, ignore_errors=True)
    return page.write(given.out, drilled)


def _show(recorder: Recorder, sample: Sample) -> None:
    if os.environ.get("DRILL_VERBOSE"):
        print(f"{sample.at:6.1f} s {sample.assigned:7} assigned", flush=True)


if __name__ == "__main__":
    sys.exit(main())
