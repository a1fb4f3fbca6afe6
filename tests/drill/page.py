"""The page of the drill in docs/benchmarks: every loss on each broker, and what went wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import TypeAdapter

from assignment_workers.lab.call_centre.agent import PATIENCE
from tests.drill.drill import Drilled, Loss

LONGEST_PAUSE = 10.0
"""The most seconds for which nobody may get an answer."""
RUNS = TypeAdapter(list[Drilled])
INTRODUCTION = """\
# The loss of a host

`make drill` runs three hosts on one machine, each with a network of its own, and loses each of them in three ways while agents work: everything on it is
killed; its packets are dropped; everything on it is stopped. After 12 seconds the host comes back: after a cut and a freeze as it was, so that its
PostgreSQL takes writes as an old primary for six seconds more. On RabbitMQ, the host that is lost first gets the leaders of all queues, so that each
loss is the worst of its kind. [High availability](../how-to/high-availability.md#three-hosts) has the three hosts and the
settings that matter.

The agents call a gateway through HAProxy, which is with them, not on one of the three hosts. An agent who gets no answer, or `unavailable`, sends the
same request again within 2 s, for two minutes. The columns:

- *pause*: the longest time in which no agent got an answer, until the host was back;
- *moved back*: the same while both primaries were moved back to host A afterwards, as an operator does;
- *longest wait*: of one agent for the answer to one request, which may have been sent several times;
- *too late, refused*: requests that were answered so. Their agents asked anew;
- *load*: the processes of the machine that wanted one of its two processors. Starting a process takes 2 s of a processor.

When all is over the history checker and the doctor examine every assignment, and compare it with what its agent was told.
"""


def write(folder: Path, drilled: Drilled) -> int:
    """Add a run to the figures in `folder` and write the page; return the exit code.

    A loss that was measured before is replaced. 1: a guarantee broke, a request stayed without an
    answer, or a pause was too long.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"drill-{drilled.broker.lower()}.json"
    runs = RUNS.validate_json(data.read_bytes()) if data.exists() else []
    new = {(each.host, each.how) for each in drilled.losses}
    for run in runs:
        run.losses = [each for each in run.losses if (each.host, each.how) not in new]
    runs = [*(run for run in runs if run.losses), drilled]
    data.write_bytes(RUNS.dump_json(runs, indent=1) + b"\n")
    render(folder)
    for line in [*_table([drilled]), *wrong(drilled)]:
        print(line)
    return 1 if wrong(drilled) else 0


def render(folder: Path) -> None:
    """Write the page of the figures in `folder`."""
    pages = [RUNS.validate_json(each.read_bytes()) for each in sorted(folder.glob("drill-*.json"))]
    (folder / "drill.md").write_text("\n".join([INTRODUCTION, *_tables(pages)]), "utf-8")


def wrong(drilled: Drilled) -> list[str]:
    """Return what must not be, each in a line."""
    return [
        *drilled.broken,
        *(
            f"host {each.host} {each.how}: {each.pause} s without an answer"
            for each in drilled.losses
            if each.pause > LONGEST_PAUSE
        ),
        *(
            f"host {each.host} {each.how}: a request was not answered within {PATIENCE:g} s"
            for each in drilled.losses
            if each.longest_wait >= PATIENCE
        ),
    ]


def _tables(pages: Sequence[list[Drilled]]) -> Iterator[str]:
    for runs in sorted(pages, key=lambda each: each[0].broker, reverse=True):
        yield f"## On {runs[0].broker}\n"
        for run in runs:
            yield (
                f"{run.at} UTC, seed {run.seed}: {run.agents} agents at {run.speed:g} times the speed of a day,"
                f" {run.requests:,} requests."
                f" With nothing lost, the longest pause was {run.calm_pause:g} s, and p99 {run.calm_p99_ms:,.0f} ms.\n"
            )
        yield from _table(runs)
        if not any(run.broken for run in runs):
            yield "\nNo guarantee broke."
        if found := [line for run in runs for line in wrong(run)]:
            yield "\nWhat fell short:\n"
            yield from (f"- {line}" for line in found)
        yield ""


def _table(runs: Sequence[Drilled]) -> Iterator[str]:
    yield "| host | what it had | lost | pause, s | moved back, s | longest wait of a request, s | requests | asked again | too late, refused | load |"
    yield "|---|---|---|---:|---:|---:|---:|---:|---:|---:|"
    losses = [each for run in runs for each in run.losses]
    yield from (_row(each) for each in sorted(losses, key=lambda each: (each.how, each.host)))


def _row(loss: Loss) -> str:
    had = ", ".join(loss.had)
    return (
        f"| {loss.host} | {had} | {loss.how} | {loss.pause:g} | {loss.moved_back:g} | {loss.longest_wait:g}"
        f" | {loss.requests:,} | {loss.asked_again:,} | {loss.otherwise} | {loss.load:g} |"
    )
