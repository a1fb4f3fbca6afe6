"""Trips: several statements at once mean what they mean one after the other, whatever fails."""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Connection,
    Integer,
    Select,
    Text,
    bindparam,
    func,
    literal,
    select,
    text,
)
from sqlalchemy import column as named
from sqlalchemy import table as of
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from assignment_workers.assignment.active_assignments import NAMED
from assignment_workers.assignment.transaction import FencedTransaction
from assignment_workers.errors import StaleTerm
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema import pipeline
from assignment_workers.schema.engine import POOLED
from assignment_workers.schema.pipeline import Statement, commit, run_statements
from assignment_workers.schema.tables import DeadLetter
from assignment_workers.sequencer.transaction_runner import TransactionRunner
from tests.support.world import User, World

NUMBERED = of("numbered", named("n", Integer), named("said", Text))
ADD = insert(NUMBERED).values(n=bindparam("n", type_=Integer), said=bindparam("said", type_=Text))
ALL = select(NUMBERED.c.n, NUMBERED.c.said).order_by(NUMBERED.c.n)
ALWAYS = select(literal(1))
SLEEP = select(func.pg_sleep(bindparam("seconds", type_=Integer)))


@pytest.fixture
def numbered(world: World) -> World:
    """With a table of which each number is one row's, and no row has the number 0."""
    world.execute("CREATE TABLE numbered (n int PRIMARY KEY CHECK (n <> 0), said text)")
    return world


def added(number: int, said: str | None = "once") -> Statement:
    return Statement(ADD, {"n": number, "said": said})


def there(world: World) -> list[Any]:
    return [row[0] for row in world.rows("SELECT n FROM numbered ORDER BY n")]


def test_statements_of_one_trip_see_those_before_them(numbered: World) -> None:
    with numbered.engine.begin() as connection:
        nothing, none, some = run_statements(
            connection, Statement(ALL), added(1, None), Statement(ALL)
        )
        assert (nothing, none, some) == ([], [], [(1, None)])
        assert (some[0].n, some[0].said) == (1, None)
        assert there(numbered) == []
    assert there(numbered) == [1]


def test_rows_are_what_sqlalchemy_gives(world: World) -> None:
    world.add_agents(1)
    world.add_users([User(1)])
    world.regenerate("unsigned_users")
    hold = world.held(1)
    for statement, given in (
        (NAMED, {"named": [hold.id]}),
        (_of_every_type(), {"number": 2**40, "words": ["a", 'b"{,}'], "at": datetime.now(UTC)}),
    ):
        with world.engine.begin() as connection:
            (found,) = run_statements(connection, Statement(statement, given))
            told = connection.execute(statement, given).all()
        assert [tuple(row) for row in found] == [tuple(row) for row in told]
        assert found[0]._fields == tuple(told[0]._mapping)


def _of_every_type() -> Select[*tuple[Any, ...]]:
    return select(
        bindparam("number", type_=BigInteger).label("number"),
        bindparam("words", type_=ARRAY(Text)).label("words"),
        bindparam("at", type_=DeadLetter.at.type).label("at"),
        func.array_agg(func.gen_random_uuid().op("=")(UUID(int=0))).label("truths"),
    )


def test_what_comes_after_a_failure_is_not_carried_out(numbered: World) -> None:
    with (
        pytest.raises(IntegrityError, match="check constraint"),
        numbered.engine.begin() as connection,
    ):
        run_statements(connection, added(1), added(0), added(2))
    assert there(numbered) == []
    with numbered.engine.begin() as connection:
        run_statements(connection, added(3))
    assert there(numbered) == [3]


def test_a_commit_that_fails_on_its_way_leaves_nothing(numbered: World) -> None:
    line = TransactionRunner(numbered.engine, dialer=loaded(), term=1)

    def write(transaction: FencedTransaction) -> None:
        transaction.run(added(1))
        transaction.defer_write(ADD, {"n": 2, "said": ""})
        transaction.defer_write(ADD, {"n": 0, "said": ""})
        transaction.defer_write(ADD, {"n": 3, "said": ""})

    with pytest.raises(IntegrityError):
        line.run(write)
    assert there(numbered) == []
    line.run(lambda transaction: transaction.defer_write(ADD, {"n": 4, "said": ""}))
    assert there(numbered) == [4]


def test_a_turn_whose_connection_is_lost_on_the_way_is_taken_again(numbered: World) -> None:
    line = TransactionRunner(numbered.engine, dialer=loaded(), term=1)
    lost: list[int] = []

    def write(transaction: FencedTransaction) -> None:
        transaction.defer_write(ADD, {"n": len(lost) + 1, "said": ""})
        if not lost:
            own = transaction.connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            lost.append(own)
            numbered.execute("SELECT pg_terminate_backend(:own, 5000)", own=own)

    line.run(write)
    assert lost
    assert there(numbered) == [2]


def test_a_lost_connection_is_told_as_one_and_not_used_again(numbered: World) -> None:
    with numbered.engine.connect() as connection:
        own = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        numbered.execute("SELECT pg_terminate_backend(:own, 5000)", own=own)
        with pytest.raises(OperationalError) as failed:
            commit(connection, added(1))
    assert failed.value.connection_invalidated
    with numbered.engine.begin() as connection:
        assert run_statements(connection, added(2), Statement(ALL))[1] == [(2, "once")]


def test_a_turn_whose_term_is_over_writes_nothing(numbered: World) -> None:
    line = TransactionRunner(numbered.engine, dialer=loaded(), term=1)
    line.run(lambda transaction: transaction.defer_write(ADD, {"n": 1, "said": ""}))
    numbered.execute("UPDATE assignment.sequencer SET term = 2")
    with pytest.raises(StaleTerm):
        line.run(lambda transaction: transaction.defer_write(ADD, {"n": 2, "said": ""}))
    assert there(numbered) == [1]


def test_what_a_trip_begins_reads_what_was_committed_meanwhile(numbered: World) -> None:
    """Whatever the database's own default is."""
    own = numbered.value("SELECT current_database()")
    numbered.execute(
        f"ALTER DATABASE \"{own}\" SET default_transaction_isolation TO 'repeatable read'"
    )
    numbered.engine.dispose()
    with numbered.engine.begin() as connection:
        run_statements(connection, Statement(ALL))
        numbered.execute("INSERT INTO numbered VALUES (7, 'elsewhere')")
        assert run_statements(connection, Statement(ALL)) == [[(7, "elsewhere")]]


def test_what_is_prepared_outlasts_a_rollback_and_what_sqlalchemy_runs(numbered: World) -> None:
    with numbered.engine.connect() as connection:
        for number in range(1, 9):  # psycopg by itself prepares what it has run five times
            connection.execute(ALL)
            run_statements(connection, added(number))
            connection.commit()
        connection.execute(ALL)
        connection.rollback()
        run_statements(connection, added(9))
        connection.execute(text("DROP TABLE IF EXISTS no_such_table"))
        run_statements(connection, added(10))
        connection.commit()
    assert there(numbered) == list(range(1, 11))


def test_behind_a_pooler_nothing_is_prepared(numbered: World) -> None:
    with numbered.engine.connect() as connection:
        connection.info[POOLED] = True
        assert run_statements(connection, added(1), Statement(ALL))[1] == [(1, "once")]
        commit(connection, added(2))
        left = "SELECT count(*) FROM pg_prepared_statements"
        assert connection.execute(text(left)).scalar_one() == 0
        connection.invalidate()
    assert there(numbered) == [1, 2]


def test_a_table_that_was_changed_fails_one_trip_at_the_most(numbered: World) -> None:
    with numbered.engine.connect() as connection:  # the same one each time
        for _ in range(2):  # it is prepared the second time
            with connection.begin():
                run_statements(connection, Statement(ALL))
        numbered.execute("ALTER TABLE numbered ALTER n TYPE bigint")
        with pytest.raises(DBAPIError), connection.begin():
            run_statements(connection, Statement(ALL))
        with connection.begin():
            assert run_statements(connection, added(1), Statement(ALL))[1] == [(1, "once")]


def test_a_signal_that_ends_a_trip_leaves_nothing_of_it_behind(numbered: World) -> None:
    with (
        pytest.raises(InterruptedError),
        numbered.engine.begin() as connection,
        interrupted(after=0.2),
    ):
        run_statements(connection, added(1), Statement(SLEEP, {"seconds": 20}))
    with numbered.engine.begin() as connection:
        assert run_statements(connection, Statement(ALL)) == [[]]


def test_other_threads_go_on_while_a_trip_is_under_way(numbered: World) -> None:
    ticks: list[float] = []
    over = threading.Event()

    def tick() -> None:
        while not over.wait(0.01):
            ticks.append(time.monotonic())

    ticking = threading.Thread(target=tick)
    with numbered.engine.begin() as connection:
        run_statements(connection, Statement(ALL))
        ticking.start()
        run_statements(connection, Statement(SLEEP, {"seconds": 1}))
        over.set()
    ticking.join()
    assert len(ticks) > 10


def test_a_large_trip_is_sent_while_its_answers_are_read(numbered: World) -> None:
    word = "x" * 1_000_000
    with numbered.engine.begin() as connection:
        run_statements(
            connection, *(added(number, word) for number in range(1, 21)), Statement(ALL)
        )
        assert len(_words(connection)) == 20
    assert len(there(numbered)) == 20


def _words(connection: Connection) -> list[Any]:
    (found, _) = run_statements(connection, Statement(ALL), Statement(ALL))
    return list(found)


@contextmanager
def interrupted(*, after: float) -> Iterator[None]:
    """Raise in this thread, as Celery's solo pool does for a signal."""

    def stop(*_: object) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, after)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_statement_that_is_made_for_one_execution_leaves_nothing_behind(world: World) -> None:
    """Neither its compiled form in the process, nor a prepared statement on the connection."""
    prepared = "SELECT count(*) FROM pg_prepared_statements"

    def compiled() -> int:
        gc.collect()
        return len(pipeline._STATEMENTS)

    with world.engine.begin() as connection:
        run_statements(connection, Statement(ALWAYS))
        run_statements(connection, Statement(ALWAYS))
        before = connection.exec_driver_sql(prepared).scalar_one(), compiled()
        for number in range(20):
            (rows,) = run_statements(connection, Statement(select(literal(number))))
            assert rows == [(number,)]
        assert (connection.exec_driver_sql(prepared).scalar_one(), compiled()) == before


def test_expressions_that_a_change_of_the_rules_replaced_are_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the process and on the server, however many changes there were."""
    monkeypatch.setattr(pipeline, "EXPRESSIONS_CACHED", 5)

    @pipeline.expression_cache
    def made(number: int) -> Select[*tuple[Any, ...]]:
        return select(literal(number)).where(literal(number) == number)

    prepared = "SELECT count(*) FROM pg_prepared_statements"
    with world.engine.begin() as connection:
        run_statements(connection, Statement(ALWAYS))
        before = connection.exec_driver_sql(prepared).scalar_one()
        for number in range(20):
            for _ in range(3):
                (rows,) = run_statements(connection, Statement(made(number)))
                assert rows == [(number,)]
            gc.collect()
        assert connection.exec_driver_sql(prepared).scalar_one() <= before + 5 + 1
        (rows,) = run_statements(connection, Statement(made(0)))
        assert rows == [(0,)]
