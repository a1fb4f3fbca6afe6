"""Lists of numbers: loaded beside what stands, and standing as a whole or not at all."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assignment_workers.assignment import suppression_lists
from assignment_workers.assignment.answers import Done, Empty, Refused
from assignment_workers.assignment.suppression_lists import Named, Staged, lines_of
from assignment_workers.assignment.suppressions import do_not_contact
from assignment_workers.errors import UsageError
from assignment_workers.phones import Reader
from assignment_workers.policy.process_dialer import loaded
from tests.support.processes import wait_until
from tests.support.suppressed_number import read
from tests.support.world import DAY, HOUR, UNSIGNED, User, World

GB = Reader("GB")
SAID = {"by": "ann", "why": "November's register"}


def stage(world: World, text: str, *, name: str = "tps", **said: Any) -> Staged:
    options = {each: said.pop(each) for each in ("dry_run", "skip_unreadable") if each in said}
    defaults: dict[str, Any] = {"replaces": True, "reason": "register", "by": "ann"}
    named = Named(name, **(defaults | said))
    with world.engine.connect() as connection:
        lines = lines_of(io.StringIO(text))
        return suppression_lists.stage(
            connection, lines, named, GB, queues=loaded().policies, **options
        )


def load(world: World, text: str, **said: Any) -> int:
    staged = stage(world, text, **said)
    assert staged.list_id is not None
    answer = world.run(suppression_lists.flip, staged.list_id, **SAID)
    assert isinstance(answer, Done)
    return staged.list_id


def suppressed(world: World, number: str) -> bool:
    with world.engine.connect() as connection:
        return suppression_lists.check(connection, number, GB).suppressed


@pytest.fixture
def ranked(world: World) -> World:
    """Three users, published, with a number each."""
    world.add_agents(1, 2, 3)
    world.add_users([User(user, user, phone=f"(020) 7946 000{user}") for user in (1, 2, 3)])
    world.regenerate(UNSIGNED)
    return world


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("02079460001\n\n# a remark\n+44 20 7946 0002\n", ["02079460001", "+44 20 7946 0002"]),
        ("\ufeffNumber;Name\n020 7946 0001;Ann\n", ["020 7946 0001"]),
        ('name,"Phone Number"\n"Ann, B.",02079460001\n', ["02079460001"]),
        ("02079460001,x\n02079460002,y\n", ["02079460001", "02079460002"]),
        ("", []),
    ],
)
def test_a_file_is_read_as_the_trade_writes_it(text: str, found: list[str]) -> None:
    assert [each[1] for each in lines_of(io.StringIO(text))] == found


@given(
    st.sampled_from(["", "number", "name,number", '"a\nheader of two lines",number']),
    st.lists(st.sampled_from(["", "  ", "# a remark", "one", "two"]), max_size=30),
)
def test_a_line_has_the_number_that_an_editor_shows(header: str, kinds: list[str]) -> None:
    """Remarks, empty lines, and quoted values of two lines are counted as well."""
    name = '"Ann\nB."' if header.startswith('"') else "Ann"
    lines, wanted = ["# the register", *([header] if header else [])], []
    for kind in kinds:
        is_number = kind in ("one", "two")
        columns = [name] * header.count(",") + ["02079460001"]
        lines.append(",".join(columns) if is_number else kind)
        if is_number:
            wanted.append("\n".join(lines).count("\n") + 1)
    text = "".join(f"{line}\n" for line in lines)
    assert [each[0] for each in lines_of(io.StringIO(text))] == wanted


def test_a_column_that_is_not_there_and_an_odd_date_are_named() -> None:
    with pytest.raises(UsageError, match="no column 'mobile'; there are number"):
        list(lines_of(io.StringIO("number\n1"), "mobile"))
    with pytest.raises(UsageError, match="line 4: 'soon'"):
        list(lines_of(io.StringIO("# a remark\n\nnumber,expires_at\n02079460001,soon\n")))


def test_a_list_counts_from_its_flip_on_and_is_replaced_as_a_whole(ranked: World) -> None:
    staged = stage(ranked, "02079460001\n0044 20 7946 0001\n+442079460009\n")
    assert staged.list_id is not None
    assert (staged.lines, staged.numbers, staged.unreadable) == (3, 2, 0)
    assert (staged.users, staged.queues) == (1, {UNSIGNED: 1})
    assert not suppressed(ranked, "020 7946 0001")
    flipped = ranked.run(suppression_lists.flip, staged.list_id, **SAID)
    assert flipped == Done(counts={"numbers": 2, "replaced": 0})
    again = ranked.run(suppression_lists.flip, staged.list_id, **SAID)
    assert again == Done(replayed=True)
    assert suppressed(ranked, "020 7946 0001")
    assert ranked.held(1).user_id == 2
    load(ranked, "02079460003\n", replaces=False)
    assert isinstance(ranked.ask(2), Empty)
    load(ranked, "02079460002\n")
    assert [suppressed(ranked, f"0207946000{n}") for n in (1, 2, 3)] == [False, True, False]
    (first, *_, last) = ranked.events("suppression_list_changed")
    assert first["details"]["size"] == 2
    assert last["details"]["retired"] == [staged.list_id, staged.list_id + 1]
    assert isinstance(ranked.run(suppression_lists.flip, staged.list_id, **SAID), Refused)
    with ranked.engine.connect() as connection:
        autocommit = connection.execution_options(isolation_level="AUTOCOMMIT")
        assert suppression_lists.purge_lists(autocommit) == 2
        assert suppression_lists.purge_lists(autocommit) == 0
    assert suppressed(ranked, "02079460002")
    assert ranked.run(suppression_lists.drop, "tps", **SAID) == Done(counts={"replaced": 1})
    assert isinstance(ranked.run(suppression_lists.drop, "tps", **SAID), Refused)
    ranked.regenerate(UNSIGNED)
    assert sorted(ranked.states()) == [1, 2, 3]
    assert ranked.unhealthy() == []


def test_a_dry_run_and_a_line_that_is_no_number_change_nothing(ranked: World) -> None:
    before = ranked.rows("SELECT * FROM assignment.suppression_lists")
    dry = stage(ranked, "02079460001\n", dry_run=True)
    assert (dry.list_id, dry.users, dry.queues) == (None, 1, {UNSIGNED: 1})
    odd = stage(ranked, "02079460001\nnobody\n")
    assert (odd.list_id, odd.unreadable, odd.shown) == (None, 1, ["line 2: 'nobody'"])
    assert ranked.rows("SELECT * FROM assignment.suppression_lists") == before
    kept = stage(ranked, "02079460001\nnobody\n", skip_unreadable=True)
    assert kept.list_id is not None
    assert kept.numbers == 1


def test_a_list_has_a_queue_and_an_end_and_each_number_its_own(ranked: World) -> None:
    ranked.now = datetime.now(UTC)
    load(ranked, "02079460001\n", name="a", queue="outstanding_requests")
    load(ranked, "02079460002\n", name="b", expires_at=ranked.now + HOUR)
    soon = (ranked.now + DAY).isoformat()
    load(ranked, f"number,expires_at\n02079460003,{soon}\n", name="c")
    assert ranked.held(1).user_id == 1
    assert isinstance(ranked.ask(2), Empty)
    ranked.now += HOUR + timedelta(seconds=1)
    ranked.regenerate(UNSIGNED)
    assert sorted(ranked.states()) == [1, 2]
    ranked.now += DAY
    ranked.regenerate(UNSIGNED)
    assert sorted(ranked.states()) == [1, 2, 3]


def test_what_cannot_be_read_waits_near_a_number_of_a_list_too(ranked: World) -> None:
    ranked.execute("UPDATE crm.users SET phone_number = '02079?4 60001' WHERE id = 1")
    first = stage(ranked, "02079460001\n", dry_run=True)
    assert (first.users, first.waiting, first.waiting_queues) == (1, 0, {})
    read(ranked)
    dry = stage(ranked, "02079460001\n+442079460002\n", dry_run=True)
    assert (dry.users, dry.queues) == (1, {UNSIGNED: 1})
    assert (dry.waiting, dry.waiting_queues) == (1, {UNSIGNED: 1})
    load(ranked, "02079460001\n")
    assert ranked.held(1).user_id == 2
    (out,) = ranked.events("taken_out")
    assert out["details"] == {"reason": "number_unclear"}


def test_many_lines_are_read_by_every_processor_and_are_exported(
    ranked: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suppression_lists, "CHUNK", 50)
    numbers = [f"+44207946{n:04d}" for n in range(120)]
    load(ranked, "\n".join(numbers))
    ranked.run(do_not_contact, user=3, reason="asked", by="ann", reader=GB)
    with ranked.engine.connect() as connection:
        rows = list(suppression_lists.exported(connection, loaded()))
    made = io.StringIO()
    csv.writer(made).writerows([suppression_lists.EXPORTED, *rows])
    found = list(csv.DictReader(io.StringIO(made.getvalue())))
    assert [each["user_id"] for each in found if each["user_id"]] == ["3"]
    assert sorted(each["number"] for each in found if each["list"] == "tps") == numbers


READING = """
import itertools, multiprocessing, sys
from functools import partial
from assignment_workers.assignment import suppression_lists
from assignment_workers.phones import Reader, read_chunk

if __name__ == "__main__":
    chunks = itertools.repeat([(1, "02079460001", None)])
    with suppression_lists._reading(chunks, partial(read_chunk, Reader("GB"))) as made:
        for _ in made:
            print(*(each.pid for each in multiprocessing.active_children()), flush=True)
"""


def test_processes_that_read_a_list_end_with_the_import_that_was_killed(tmp_path: Path) -> None:
    program = tmp_path / "reading.py"
    program.write_text(READING)
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as reading:
        assert reading.stdout is not None
        readers = [int(pid) for pid in reading.stdout.readline().split()]
        assert readers
        reading.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in readers), "their end")


def test_the_check_of_a_number_is_index_probes(ranked: World) -> None:
    load(ranked, "\n".join(f"+44207946{n:04d}" for n in range(3000)))
    with ranked.engine.connect() as connection:
        plan = connection.exec_driver_sql(
            "EXPLAIN SELECT 1 FROM assignment.suppressed_numbers n"
            " JOIN assignment.suppression_lists l ON l.id = n.list_id"
            " WHERE n.number = ANY(ARRAY['+442079460001']) AND l.state = 'standing'"
        ).scalars()
        assert not [line for line in plan if "Seq Scan on suppressed_numbers" in line]
