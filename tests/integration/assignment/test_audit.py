"""The chain of digests over events: each way of tampering is found, and told from the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from assignment_workers.assignment import audit
from assignment_workers.assignment.generations.purge import prune_history
from assignment_workers.assignment.history.audit_check import (
    ChainFault,
    Checked,
    check,
    check_file,
    compare,
)
from assignment_workers.assignment.history.audit_check import export as export_to
from assignment_workers.assignment.jobs import Counts
from assignment_workers.assignment.person import forget
from assignment_workers.assignment.suppressions import do_not_contact
from assignment_workers.phones import Reader
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.engine import connect
from tests.support.commands import dialer_of_the_run, type_in
from tests.support.world import HOUR, UNSIGNED, User, World

FREE = "ALTER TABLE assignment.audit_batches DISABLE TRIGGER append_only"


def chain(world: World) -> Counts:
    with world.engine.connect() as connection:
        return audit.extend(connection)


def checked(world: World) -> Checked:
    with world.engine.connect() as connection:
        return check(connection)


def exported(world: World, lane: str | None = None) -> list[str]:
    lines: list[str] = []
    with world.engine.connect() as connection:
        export_to(connection, lines.append, lane=lane)
    return lines


def found(result: Checked) -> list[tuple[str, int | None, int | None]]:
    return [(each.fault.value, each.position, each.upto) for each in result.findings]


@pytest.fixture
def lived(world: World) -> World:
    """Twelve events and more of a lane, two of none, all of them chained."""
    world.add_agents(1, 2)
    world.add_users([User(number, number) for number in range(1, 6)])
    world.regenerate(UNSIGNED)
    for _ in range(3):
        world.complete(world.held(1), notes="typed")
    world.run(do_not_contact, reader=Reader(), user=5, reason="typed", by="ann of the desk")
    world.execute(
        "INSERT INTO assignment.events (at, kind, user_id, details)"
        ' VALUES (now(), \'discovered\', 8, \'{"f": 1.50, "s": "\\u00e9"}\'),'
        " (now(), 'discovered', 9, '{}')"
    )
    chain(world)
    return world


def test_every_event_is_chained_and_a_turn_writes_no_digest(world: World) -> None:
    world.add_agents(1)
    world.add_users([User(1)])
    world.regenerate(UNSIGNED)
    world.release(world.held(1))
    assert world.value("SELECT count(*) FROM assignment.audit_batches") == 0
    written = world.value("SELECT count(*) FROM assignment.events")
    assert checked(world).pending == written
    assert chain(world)["events"] == written
    assert chain(world)["events"] == 0
    result = checked(world)
    assert (result.ok, result.events, result.pending) == (True, written, 0)


def test_each_lane_has_a_chain_and_so_have_the_events_of_none(lived: World) -> None:
    lived.execute(
        "INSERT INTO assignment.sequencer (lane, term, terms) VALUES ('second', 9, '{9}');"
        "INSERT INTO assignment.events (at, kind, term) VALUES (now(), 'x', 9), (now(), 'x', 9);"
        "INSERT INTO assignment.events (at, kind, term, details)"
        " VALUES (now(), 'term_begun', 7, '{\"lane\": \"third\"}')"
    )
    chain(lived)
    result = checked(lived)
    assert result.ok
    lanes = {each.lane: each.position for each in result.chains}
    assert lanes == {"-": 2, "default": lanes["default"], "second": 2, "third": 1}
    assert check_file(exported(lived, lane="second")).events == 2


def test_an_export_is_checked_by_itself_and_holds_no_typed_word(lived: World) -> None:
    lines = exported(lived)
    result = check_file(lines)
    assert result.ok
    assert result.events == len(lines) - 2 == checked(lived).events
    assert "typed" not in "".join(lines)
    assert "ann of the desk" not in "".join(lines)
    assert result.chains == checked(lived).chains


def test_forgetting_a_person_breaks_no_digest(lived: World) -> None:
    lines = exported(lived)
    lived.run(do_not_contact, reader=Reader(), user=1, reason="(forgotten)", by="operator")
    with lived.engine.begin() as connection:
        forget(connection, loaded(), None, 1, Reader())
    chain(lived)
    assert checked(lived).ok
    with lived.engine.connect() as connection:
        assert compare(connection, lines) == []


CHANGES = {
    "kind": "kind || 'x'",
    "at": "at + interval '1 microsecond'",
    "term": "coalesce(term, 0) + 1",
    "queue": "coalesce(queue, '') || 'x'",
    "user_id": "coalesce(user_id, 0) + 1",
    "agent_id": "coalesce(agent_id, 0) + 1",
    "assignment_id": "gen_random_uuid()",
    "request_id": "coalesce(request_id, '') || 'x'",
    "generation_id": "coalesce(generation_id, 0) + 1",
    "details": "details || '{\"more\": 1}'",
}


def test_a_change_of_one_event_is_found_in_every_column(lived: World) -> None:
    for column, other in CHANGES.items():
        lived.execute("DROP TABLE IF EXISTS saved")
        lived.execute("CREATE TABLE saved AS SELECT * FROM assignment.events WHERE id = 4")
        lived.tamper(f"UPDATE assignment.events SET {column} = {other} WHERE id = 4")
        faults = [(each.fault, each.event_id) for each in checked(lived).findings]
        assert faults == [(ChainFault.CHANGED, 4)], column
        assert found(check_file(exported(lived))) == [("changed", 4, None)], column
        lived.tamper(
            f"UPDATE assignment.events SET {column} = (SELECT {column} FROM saved) WHERE id = 4"
        )
        assert checked(lived).ok


def test_no_column_of_an_event_is_left_out(world: World) -> None:
    columns = world.column(
        "SELECT column_name FROM information_schema.columns"
        " WHERE table_schema = 'assignment' AND table_name = 'events'"
    )
    assert set(columns) == {"id", *CHANGES}


def test_a_deleted_event_is_found(lived: World) -> None:
    lived.tamper("DELETE FROM assignment.events WHERE id IN (4, 5)")
    faults = [(each.fault, each.event_id) for each in checked(lived).findings]
    assert faults == [(ChainFault.DELETED, 4), (ChainFault.DELETED, 5)]
    assert found(check_file(exported(lived))) == [("deleted", 4, 5)]


def test_another_order_is_found(lived: World) -> None:
    lived.tamper(
        "UPDATE assignment.events SET id = CASE id WHEN 3 THEN -6 ELSE -3 END WHERE id IN (3, 6)"
    )
    lived.tamper("UPDATE assignment.events SET id = -id WHERE id < 0")
    expected = [("reordered", 3, None), ("reordered", 6, None)]
    assert found(checked(lived)) == expected
    assert found(check_file(exported(lived))) == expected


def test_an_event_that_was_put_in_is_found(lived: World) -> None:
    lived.execute(
        "INSERT INTO assignment.events (id, at, kind) OVERRIDING SYSTEM VALUE"
        " VALUES (-1, now(), 'x')"
    )
    assert [(each.fault, each.event_id) for each in checked(lived).findings] == [
        (ChainFault.ADDED, -1)
    ]


def age(world: World, upto: int) -> None:
    """Events up to this id are as old as the purge's are; the chains are made anew."""
    world.tamper(f"{FREE}; DELETE FROM assignment.audit_batches")
    world.tamper(
        "UPDATE assignment.events SET at = at - interval '91 days' WHERE id <= :upto", upto=upto
    )
    chain(world)


def purge(world: World) -> int:
    with world.engine.begin() as connection:
        return prune_history(connection, settings=world.settings)["events"]


def test_a_purged_front_is_no_fault_and_the_chain_goes_on_from_its_anchor(lived: World) -> None:
    age(lived, 4)
    before = exported(lived)
    assert purge(lived) == 4
    assert lived.value("SELECT min(id) FROM assignment.events") == 5
    result = checked(lived)
    assert result.ok
    assert {each.lane: each.purged for each in result.chains} == {"default": 4, "-": 0}
    lines = exported(lived)
    assert check_file(lines).ok
    with lived.engine.connect() as connection:
        assert compare(connection, before) == []
    lived.regenerate(UNSIGNED)
    assert chain(lived)["events"] > 0
    assert checked(lived).ok
    assert purge(lived) == 0


def test_a_chain_that_was_purged_whole_goes_on(lived: World) -> None:
    newest = lived.value("SELECT max(id) FROM assignment.events")
    age(lived, newest)
    assert purge(lived) == newest
    assert checked(lived).events == 0
    lived.regenerate(UNSIGNED)
    chain(lived)
    result = checked(lived)
    assert result.ok
    assert result.events > 0


def test_a_purge_between_the_two_reads_of_the_ends_leaves_no_old_anchor_as_an_end(
    lived: World,
) -> None:
    """A batch that continued from such an end would stand beside those that were there."""
    newest = lived.value("SELECT max(id) FROM assignment.events")
    age(lived, 4)
    purge(lived)
    age(lived, newest)
    with lived.engine.connect() as connection:
        before = audit.heads(connection)
    reads: list[str] = []

    def purging(_: object, __: object, statement: str, *___: object) -> None:
        reads.append(statement)
        if len(reads) == 2:
            assert purge(lived) == newest - 4

    event.listen(lived.engine, "before_cursor_execute", purging)
    with lived.engine.connect() as connection:
        assert audit.heads(connection) == before
    assert len(reads) > 2, "the purge came in between"
    with lived.engine.connect() as connection:
        assert audit.heads(connection) == before, "now the anchors are the ends"


def test_a_front_that_was_cut_by_anybody_else_is_found(lived: World) -> None:
    age(lived, 4)
    lines = exported(lived)
    lived.tamper(f"{FREE}; DELETE FROM assignment.audit_batches WHERE first = 1 AND lane <> '-'")
    lived.tamper("DELETE FROM assignment.events WHERE id <= 4")
    assert found(checked(lived)) == [("cut", 1, 4)]
    front = [
        line for line in lines if json.loads(line).get("position", 9) > 4 or '"-"' in line[:12]
    ]
    assert found(check_file(front)) == [("cut", 1, 4)]


def test_an_anchor_that_was_changed_is_found(lived: World) -> None:
    age(lived, 4)
    purge(lived)
    lived.execute("UPDATE assignment.audit_anchors SET digest = sha256('x')")
    assert found(checked(lived)) == [("changed", 5, None)]


def test_a_digest_that_was_changed_is_found(lived: World) -> None:
    lived.tamper(
        f"{FREE}; UPDATE assignment.audit_batches SET digests = set_byte(digests, 100, 1)"
        " WHERE lane <> '-'"
    )
    assert found(checked(lived)) == [("changed", 4, None), ("changed", 5, None)]


def test_a_past_that_was_written_anew_is_found_by_an_earlier_export(lived: World) -> None:
    lines = exported(lived)
    lived.tamper(f"{FREE}; DELETE FROM assignment.audit_batches")
    lived.tamper("UPDATE assignment.events SET user_id = 4 WHERE id = 4")
    chain(lived)
    assert checked(lived).ok, "the digests are consistent"
    with lived.engine.connect() as connection:
        assert [each.fault for each in compare(connection, lines)] == [ChainFault.REWRITTEN]


def test_an_end_that_was_taken_away_is_found_by_an_earlier_export(lived: World) -> None:
    lines = exported(lived)
    lived.tamper(f"{FREE}; DELETE FROM assignment.audit_batches")
    lived.tamper("DELETE FROM assignment.events WHERE id > 6")
    chain(lived)
    assert checked(lived).ok
    with lived.engine.connect() as connection:
        faults = {each.lane: each.fault for each in compare(connection, lines)}
    assert faults == {"-": ChainFault.SHORTENED, "default": ChainFault.SHORTENED}


def of_default(line: str) -> bool:
    return '"lane":"default"' in line[:20]


END = -1
"""In place of the last position."""
Tamper = Callable[[list[str]], list[str]]
FILES: dict[str, tuple[Tamper, list[tuple[str, int | None, int | None]]]] = {
    "a word of an event": (
        lambda lines: [
            each.replace('"user_id":', '"user_id":1') if '"position":3,' in each else each
            for each in lines
        ],
        [("changed", 3, None)],
    ),
    "a line left out": (
        lambda lines: [each for each in lines if '"position":3,' not in each],
        [("deleted", 3, 3)],
    ),
    "two lines left out, apart": (
        lambda lines: [
            each for each in lines if not ('"position":3,' in each or '"position":6,' in each)
        ],
        [("deleted", 3, 3), ("deleted", 6, 6)],
    ),
    "lines in another order": (
        lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]],
        [("reordered", 3, None)],
    ),
    "a line twice": (lambda lines: [*lines[:4], lines[3], *lines[4:]], [("added", 3, None)]),
    "the front left out": (lambda lines: [lines[0], *lines[3:]], [("cut", 1, 2)]),
    "the last events left out": (
        lambda lines: [*lines[:6], lines[-1]],
        [("deleted", 6, END)],
    ),
    "cut short": (lambda lines: lines[:6], [("shortened", None, None)]),
    "no export": (lambda _: ["{}\n"], [("unreadable", None, None)]),
    "a line of something else": (
        lambda lines: [*lines[:3], "nonsense\n", *lines[3:]],
        [("unreadable", None, None)],
    ),
    "empty": (lambda _: [], [("shortened", None, None)]),
}


def test_what_was_done_to_a_file_is_told_apart(lived: World) -> None:
    lines = exported(lived, lane="default")
    assert check_file(lines).ok
    last = check_file(lines).chains[0].position
    for name, (tamper, faults) in FILES.items():
        expected = [(fault, at, last if upto == END else upto) for fault, at, upto in faults]
        assert found(check_file(tamper(lines))) == expected, name


def test_an_event_waits_for_those_whose_transactions_may_still_write_an_earlier_id(
    lived: World,
) -> None:
    with lived.engine.connect() as late:
        late.execute(text("INSERT INTO assignment.events (at, kind) VALUES (now(), 'late')"))
        lived.execute("INSERT INTO assignment.events (at, kind) VALUES (now(), 'early')")
        with ThreadPoolExecutor(1) as thread:
            ended: list[float] = []
            with lived.engine.connect() as connection:
                running = thread.submit(audit.extend, connection, sleep=ended.append)
                assert running.result(timeout=20)["waiting"] == 1
                assert ended, "it waited"

                def over(_: float) -> None:
                    if late.in_transaction():
                        late.commit()

                assert thread.submit(audit.extend, connection, sleep=over).result(20)["events"] == 2
    assert checked(lived).ok


def test_many_events_are_chained_a_part_at_a_time(lived: World) -> None:
    lived.execute(
        "INSERT INTO assignment.events (at, kind, term) SELECT now() - n * interval '10 min',"
        " 'x', 1 FROM generate_series(1, 2500) n"
    )
    with lived.engine.connect() as connection:
        assert audit.extend(connection, transactions=1) == {"events": 1000, "waiting": 0, "left": 1}
    assert chain(lived)["events"] == 1500
    result = checked(lived)
    assert (result.ok, result.pending) == (True, 0)
    spans = lived.value(
        "SELECT max(span) FROM (SELECT max(e.at) - min(e.at) AS span FROM assignment.audit_batches"
        " b, unnest(b.ids) AS one JOIN assignment.events e ON e.id = one GROUP BY b.lane, b.first) s"
    )
    assert spans < HOUR, "the purge keeps the retention to the hour"


def test_batches_are_append_only(lived: World) -> None:
    for what in (
        "UPDATE assignment.audit_batches SET upto = 1",
        "DELETE FROM assignment.audit_batches",
        "TRUNCATE assignment.audit_batches",
    ):
        with pytest.raises(DBAPIError, match="audit_batches is append-only"):
            lived.execute(what)


def test_the_commands(lived: World, tmp_path: Path) -> None:
    url = lived.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)

    def run(*words: str, database: str | None = url) -> subprocess.CompletedProcess[str]:
        given = {name: each for name, each in os.environ.items() if "ASSIGNMENT" not in name}
        given |= {"DATABASE_URL": database} if database else {}
        given |= dialer_of_the_run(tmp_path)
        command = [sys.executable, "-m", "assignment_workers", "audit", *words]
        return subprocess.run(
            command, env=given, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    file = tmp_path / "audit.jsonl"
    assert run("export", str(file)).returncode == 0
    assert run("export").stdout.splitlines()[1:-1] == file.read_text().splitlines()[1:-1]
    offline = run("verify", str(file), database=None)
    assert (offline.returncode, "nothing is wrong" in offline.stdout) == (0, True), offline.stderr
    whole = run("verify", "--since", str(file), "--json")
    assert (whole.returncode, json.loads(whole.stdout)["ok"]) == (0, True), whole.stderr
    lived.tamper("DELETE FROM assignment.events WHERE id = 4")
    broken = run("verify")
    assert broken.returncode == 1
    assert broken.stderr == "assignment-workers: lane default, position 4 (event 4) deleted\n"
    missing = run("verify", "nowhere", database=None)
    assert missing.returncode == 2
    assert (
        missing.stderr == "assignment-workers: nowhere cannot be read: No such file or directory\n"
    )


def test_what_an_old_primary_has_and_this_database_lacks_is_named(
    lived: World, module_database_url: str, tmp_path: Path
) -> None:
    url = lived.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)

    def run(old: str, database: str) -> subprocess.CompletedProcess[str]:
        given = {name: each for name, each in os.environ.items() if "ASSIGNMENT" not in name}
        words = ["audit", "lost", old, "--json"]
        return type_in(words, given | {"DATABASE_URL": database}, tmp_path)

    same = run(url, url)
    assert (same.returncode, json.loads(same.stdout)) == (0, []), same.stderr
    copied = "id, at, kind, term, queue, user_id, agent_id, assignment_id"
    with lived.engine.connect() as connection:
        events = connection.execute(text(f"SELECT {copied} FROM assignment.events ORDER BY id"))
        rows = [dict(row) for row in events.mappings()]
    lost = [row for row in rows if row["kind"] == "assigned"][-2:]
    after = connect(module_database_url, name="test", statement_timeout=timedelta(seconds=9))
    try:
        with after.begin() as connection:
            connection.execute(
                text(
                    f"INSERT INTO assignment.events ({copied}) OVERRIDING SYSTEM VALUE VALUES"
                    f" ({', '.join(f':{name}' for name in copied.split(', '))})"
                ),
                [row for row in rows if row not in lost],
            )
    finally:
        after.dispose()
    found = run(url, module_database_url)
    named = [(each["id"], each["assignment_id"]) for each in json.loads(found.stdout)]
    assert found.returncode == 1
    assert named == [(row["id"], str(row["assignment_id"])) for row in lost]
    wrong = run("host=a b", url)
    assert (wrong.returncode, "OLD: libpq cannot read it" in wrong.stderr) == (2, True)


def test_what_is_deleted_is_what_is_older(lived: World) -> None:
    """An event of a clock that was ahead keeps nothing beyond its retention."""
    lived.tamper(f"{FREE}; DELETE FROM assignment.audit_batches")
    lived.tamper("UPDATE assignment.events SET at = at + interval '9 years' WHERE id = 1")
    count = chain(lived)["events"]
    with lived.engine.begin() as connection:
        connection.execute(text("SELECT set_config('assignment.purge', 'on', true)"))
        assert audit.cut(connection, timedelta(days=1)) == 0
        assert audit.cut(connection, timedelta(seconds=-1)) == count
