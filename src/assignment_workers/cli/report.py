"""The command `report`: print the service levels of a period."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from assignment_workers.assignment.reports.breakdown import Share, breakdown, unanswered
from assignment_workers.assignment.reports.report import Report
from assignment_workers.assignment.reports.report import report as read_report
from assignment_workers.assignment.reports.service_levels import unseen
from assignment_workers.cli.servers import database
from assignment_workers.cli.show import AsJson, as_json, as_table
from assignment_workers.errors import UsageError
from assignment_workers.policy.process_dialer import loaded

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def add_to(app: typer.Typer) -> None:
    """Add the command of this module to `app`."""
    app.command()(report)


def report(
    since: Annotated[str, typer.Option(help="How far back: 45m, 24h, 7d.")] = "24h",
    json: AsJson = False,
    html: Annotated[
        Path | None, typer.Option(help="Write it to this file, as one HTML page with charts.")
    ] = None,
) -> int:
    """Report assignments, time to assign, success rate and lost rows.

    The success rate is about agents' requests for a user, not about calls. It is the share of
    requests whose answer was a user, or the reason why no user was assigned. Requests that were
    their caller's mistake do not count. A row is lost if an event records an assignment that has no
    row. The report also has the races (conflicts between two writers), and the results of the
    checks of the guarantees. Without --json, the report also has figures for each dialer queue and
    for each team of agents. The exit code is 1 if rows were lost or a check has failed.
    """
    began = datetime.now(UTC) - period(since)
    with database() as connection:
        found = read_report(connection, loaded(), since=began)
        divided = breakdown(connection, since=found.since, until=found.until)
        lost = unanswered(connection, since=found.since, until=found.until)
    if html is not None:
        from assignment_workers.gateway.dashboard.document import document

        try:
            html.write_text(document(found, divided, lost), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--html {str(html)!r}: {error.strerror}") from None
        typer.echo(f"written: {html}")
    elif json:
        as_json(found)
    else:
        _show(found)
        for name, each in (("Dialer queues", divided.queues), ("Teams", divided.teams)):
            _show_shares(name, each)
    return 1 if found.lost or found.consistency.broken else 0


def period(said: str) -> timedelta:
    """Parse a period such as `24h`. Raises `UsageError` if it is not a number with s, m, h or d."""
    match = re.fullmatch(r"([1-9][0-9]{0,6})([smhd])", said, re.ASCII)
    length = timedelta(**{UNITS[match[2]]: int(match[1])}) if match else timedelta(0)
    if not timedelta(0) < length <= timedelta(days=3650):
        raise UsageError(f"--since {said!r}: a number and s, m, h or d, such as 24h; up to 3650d")
    return length


def _show_shares(name: str, each: Sequence[Share]) -> None:
    as_table(
        name,
        ["", "assignments", "completed", "skipped", "released", "expired", "average", "p99"],
        [
            (
                share.name,
                share.assignments,
                share.completed,
                share.skipped,
                share.released,
                share.expired,
                _milliseconds(share.average),
                _milliseconds(share.p99),
            )
            for share in each
        ],
    )


def _share(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.4%}"


def _milliseconds(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds * 1000:.1f} ms"


def _show(found: Report) -> None:
    times = found.seconds_to_assign
    checks = f"{found.consistency.checks - len(found.consistency.broken)}"
    as_table(
        f"Service levels, {found.since:%Y-%m-%d %H:%M:%SZ} to {found.until:%H:%M:%SZ}",
        ["what", "is", "target"],
        [
            ("assignments", found.assignments, None),
            ("time to assign, average", _milliseconds(times.average), "under 100 ms"),
            ("time to assign, p99", _milliseconds(times.p99), None),
            ("success rate", _share(found.success_rate), "over 99.9 %"),
            ("availability by minute", _share(found.availability), "over 99.9 %"),
            ("requests", found.asked, None),
            ("requests answered usefully", found.useful, None),
            *((f"requests {name}", n, "none") for name, n in found.unanswered.items()),
            ("callers' mistakes, not counted as requests", found.mistakes, None),
            ("lost rows", found.lost, "none"),
            ("rebuilds and claims interleaved", found.interleavings, "none"),
            ("consistency", f"{checks} of {found.consistency.checks} checks hold", "all"),
            *((f"answered {name}", count, None) for name, count in sorted(found.answers.items())),
            *((f"ended {name}", count, None) for name, count in sorted(found.ended.items())),
            *(
                (f"race {name}", count, "resolved: no harm done")
                for name, count in sorted(found.races.items())
            ),
            *((f"broken: {name}", None, "doctor tells more") for name in found.consistency.broken),
        ],
    )
    for line in unseen(found.unseen):
        typer.echo(f"Not known: {line}")
