"""The audit commands: export and check the events with their chained digests.

The digest of an event covers the event and the digest of the event before it. So a later change,
deletion or insertion of an event is detected.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, TextIO

import typer

from assignment_workers.addresses import check_postgres
from assignment_workers.assignment import user_ids
from assignment_workers.assignment.history import audit_check
from assignment_workers.assignment.history.audit_check import ChainFinding, Checked
from assignment_workers.assignment.history.lost import lost as missing_events
from assignment_workers.cli.report import period
from assignment_workers.cli.servers import database, with_database
from assignment_workers.cli.show import AsJson, as_json, as_table, complain
from assignment_workers.errors import UsageError
from assignment_workers.policy.process_dialer import loaded

group = typer.Typer(help="Events with chained digests: export and check.", no_args_is_help=True)

AT_MOST = timedelta(hours=2)
SHOWN = 20
"""The greatest number of findings that are printed without --json."""


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    app.add_typer(group, name="audit")


@group.command()
def export(
    file: Annotated[Path, typer.Argument(help="Where to write; - is standard output.")] = Path("-"),
    lane: Annotated[str | None, typer.Option(help="This lane alone; - is of no lane.")] = None,
) -> int:
    """Write the chained events as lines of JSON, for `audit verify FILE` on any machine.

    Chained events are events with a digest, which covers the event and the digest of the event
    before it. Texts that people typed and phone numbers are left out. The rights of the database
    role assignment_reader are enough.
    """
    with database(patience=AT_MOST) as connection, _writing(file) as stream:
        count = audit_check.export(connection, stream.write, lane=lane)
    typer.echo(f"{count} events", err=True)
    return 0


@group.command()
def verify(
    file: Annotated[
        Path | None, typer.Argument(help="An export, - for standard input; left out: the database.")
    ] = None,
    since: Annotated[
        Path | None,
        typer.Option(help="An earlier export, whose events the database must still have."),
    ] = None,
    json: AsJson = False,
) -> int:
    """Check an export on its own, or the database against its digests; exit code 1 on a finding.

    The digest of an event covers the event and the digest of the event before it.

    Each of these is a finding. An event was changed, deleted, added, or moved to another position.
    The first events of a chain are missing, and no purge of old events has deleted them. The last
    events of a chain are missing. A line of an export cannot be read.

    In the database, only `--since` finds events that were rewritten together with all their
    digests, or last events that were deleted together with their digests. So store exports on
    another machine.
    """
    if file is not None:
        if since is not None:
            raise typer.BadParameter("--since is for the database: leave FILE out")
        with _reading(file) as stream:
            checked = audit_check.check_file(stream)
    else:
        with database(patience=AT_MOST) as connection:
            checked = audit_check.check(connection)
            if since is not None:
                with _reading(since) as stream:
                    checked.findings += audit_check.compare(connection, stream)
    if json:
        as_json({"ok": checked.ok, **checked.model_dump()})
    else:
        _show(checked)
    return 0 if checked.ok else 1


@group.command()
def lost(
    old: Annotated[
        str, typer.Argument(help="The old server's address, such as `service=old` of libpq.")
    ],
    since: Annotated[
        str | None, typer.Option(help="How far back to compare: 90m, 24h; unset: an hour.")
    ] = None,
    json: AsJson = False,
) -> int:
    """Name what an old primary has recorded and this database lacks; exit code 1 if anything.

    Each event that only the old primary has is printed. Use this command after a failover or a
    restore, while the old server can still be read. Nothing is written to either server.
    """
    try:
        check_postgres(old)
    except ValueError as error:
        raise UsageError(f"OLD: {error}") from None
    given = with_database()
    other = given.model_copy(update={"database_url": old})
    began = None if since is None else datetime.now(UTC) - period(since)
    with database(patience=AT_MOST) as here, database(other, patience=AT_MOST) as there:
        found = user_ids.shown(loaded(), there, missing_events(there, here, since=began))
    if json:
        as_json(found)
    else:
        as_table(
            "Lost",
            ["at", "event", "kind", "agent", "user", "assignment", "queue", "term"],
            [
                (
                    f"{each.at:%Y-%m-%d %H:%M:%S.%fZ}",
                    each.id,
                    each.kind,
                    each.agent_id,
                    each.user_id,
                    each.assignment_id,
                    each.queue,
                    each.term,
                )
                for each in found
            ],
        )
        typer.echo(f"{len(found)} events are lost")
    return 1 if found else 0


def _show(checked: Checked) -> None:
    for chain in checked.chains:
        purged = f", {chain.purged} before were purged" if chain.purged else ""
        typer.echo(f"lane {chain.lane}: up to position {chain.position}{purged}")
        typer.echo(f"  head {chain.digest}")
    if checked.pending and checked.pending_since:
        since = f"{checked.pending_since:%Y-%m-%d %H:%M:%SZ}"
        typer.echo(f"{checked.pending} events since {since} are not chained yet")
    for finding in checked.findings[:SHOWN]:
        complain(_line(finding))
    if len(checked.findings) > SHOWN:
        complain(f"and {len(checked.findings) - SHOWN} more; --json has all")
    wrong = f"{len(checked.findings)} wrong" if checked.findings else "nothing is wrong"
    typer.echo(f"{checked.events} events checked: {wrong}")


def _line(finding: ChainFinding) -> str:
    where = "" if finding.lane is None else f"lane {finding.lane}, "
    if finding.position is not None:
        several = finding.upto is not None and finding.upto != finding.position
        where += f"position {finding.position}" + (f" to {finding.upto}" if several else "")
    event = "" if finding.event_id is None else f" (event {finding.event_id})"
    said = f": {finding.said}" if finding.said else ""
    return f"{where}{event} {finding.fault.value}{said}".strip()


@contextmanager
def _writing(file: Path) -> Iterator[TextIO]:
    if str(file) == "-":
        yield sys.stdout
        return
    try:
        with file.open("w", encoding="utf-8") as stream:
            yield stream
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}") from error


@contextmanager
def _reading(file: Path) -> Iterator[TextIO]:
    if str(file) == "-":
        yield sys.stdin
        return
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            yield stream
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
