"""A term is known by a random id beside its number, which a database that moves back repeats."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import text

from assignment_workers.assignment.history.history import check
from assignment_workers.assignment.reports.status import StandbyStatus
from assignment_workers.assignment.transaction import FencedTransaction
from assignment_workers.devstack import postgres
from assignment_workers.errors import StaleTerm
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.sequencer.sequencer import Sequencer
from assignment_workers.sequencer.term import APPLICATION, SILENCE, Candidacy
from assignment_workers.sequencer.transaction_runner import TransactionRunner
from tests.support.processes import wait_until
from tests.support.world import HOUR, World

ROW = "SELECT term, term_id, terms, marks FROM assignment.sequencer"


@pytest.fixture
def candidacy(world: World, database_url: str) -> Iterator[Candidacy]:
    with closing(Candidacy(database_url, dialer=loaded())) as made:
        yield made


def led(world: World, candidacy: Candidacy) -> Sequencer:
    """A sequencer that leads."""
    made = Sequencer(world.engine, candidacy, crm=None, queue="assignment", send_probe=lambda: None)
    assert made.stand() is not None
    return made


def moved_back(world: World, to: Any) -> None:
    """The row of terms as a copy of the past has it."""
    world.execute(
        "UPDATE assignment.sequencer SET term = :term, term_id = :term_id, terms = :terms,"
        " marks = :marks",
        **dict(zip(("term", "term_id", "terms", "marks"), to, strict=True)),
    )
    world.tamper("DELETE FROM assignment.events WHERE kind = 'term_begun'")


def test_a_leader_whose_number_was_given_out_again_commits_nothing_and_says_so(
    world: World, candidacy: Candidacy, database_url: str
) -> None:
    (before,) = world.rows(ROW)
    old = led(world, candidacy)
    line = old.runner
    moved_back(world, before)
    candidacy.close()
    with closing(Candidacy(database_url, dialer=loaded())) as another:
        new = led(world, another)
        assert (new.term, new.mark == old.mark) == (old.term, False)
        with (
            pytest.raises(StaleTerm, match="it was begun a second time") as stale,
            line.transaction(),
        ):
            pytest.fail("a turn of the old term")
        old.overtaken(stale.value)
        with new.runner.transaction() as transaction:
            assert transaction.term == new.term
    assert not old.leads
    with world.engine.connect() as connection:
        found = [
            str(each.what)
            for each in check(connection, dialer=loaded(), settings=world.settings, bound=HOUR)
        ]
    assert found == [
        "term 2 was begun twice: the database moved back, and lost what it had committed since"
    ]
    assert world.unhealthy() == ["no term was begun twice: the database has not moved back"]


def test_a_leader_that_follows_one_the_database_has_forgotten_says_so(
    world: World, candidacy: Candidacy
) -> None:
    sequencer = led(world, candidacy)
    sequencer.follows("1." + "0" * 32)
    assert world.unhealthy() == []
    sequencer.follows(f"{sequencer.term}." + "f" * 32)
    assert world.unhealthy() == ["no term was begun twice: the database has not moved back"]


def test_a_place_that_is_given_up_revokes_the_turn_that_is_being_retried(
    world: World, candidacy: Candidacy
) -> None:
    sequencer = led(world, candidacy)
    line = sequencer.runner

    def gives_up(transaction: FencedTransaction) -> None:
        transaction.record({"kind": "queue_paused", "queue": "unsigned_users"})
        sequencer.resign()

    with pytest.raises(StaleTerm):
        line.run(gives_up)
    assert world.value("SELECT count(*) FROM assignment.events WHERE kind = 'queue_paused'") == 0


def test_a_turn_writes_no_new_version_of_the_row_that_proves_its_term(world: World) -> None:
    line = TransactionRunner(world.engine, dialer=loaded(), term=world.term, randomness=Random(1))
    place = "SELECT ctid::text FROM assignment.sequencer"
    before = world.value(place)
    for _ in range(3):
        with line.transaction():
            pass
    assert world.value(place) == before


def test_a_busy_leader_leaves_a_sign_of_life_and_not_in_every_turn(
    world: World, candidacy: Candidacy
) -> None:
    line = led(world, candidacy).runner
    at = text("SELECT last_turn_at FROM assignment.sequencer_signs")
    with world.engine.connect() as connection:
        began = connection.execute(at).scalar_one()
        connection.rollback()
        with line.transaction():
            pass
        assert connection.execute(at).scalar_one() == began
        connection.rollback()
        line._signed -= 2.0  # the last sign was two seconds ago
        with line.transaction():
            pass
        assert connection.execute(at).scalar_one() > began


def test_standbys_and_leaders_of_0_1_and_of_this_version_see_each_others_signs(
    world: World, candidacy: Candidacy
) -> None:
    """A standby of 0.1 reads `seen_at` alone, and a leader of 0.1 writes nothing else."""
    line = led(world, candidacy).runner
    world.execute("UPDATE assignment.sequencer SET seen_at = seen_at - interval '1 hour'")
    line._seen_signed -= SILENCE.total_seconds() / 2
    with line.transaction():
        pass
    silent = "SELECT clock_timestamp() - seen_at < interval '5 seconds' FROM assignment.sequencer"
    assert world.value(silent)
    world.execute("UPDATE assignment.sequencer_signs SET last_turn_at = now() - interval '1 hour'")
    sign = candidacy.sign()
    assert sign is not None
    assert sign.silent < 5
    found = world.status(APPLICATION)
    assert found.sequencer.leader is not None


def test_status_tells_of_a_standby_that_may_lack_the_last_commits(
    world: World, database_url: str, tmp_path: Path
) -> None:
    """What receives the log as a standby does, and confirms nothing that a commit waits for."""
    to = urlsplit(database_url)
    directory = tmp_path / "wal"
    directory.mkdir()
    receiving = subprocess.Popen(
        [
            *(postgres.find_programs() / "pg_receivewal", f"--directory={directory}", "--no-loop"),
            *(f"--host={to.hostname}", f"--port={to.port}", "--username=postgres", "--no-password"),
        ],
        stderr=subprocess.PIPE,
    )
    try:

        def seen() -> list[StandbyStatus]:
            assert receiving.poll() is None
            found = world.status(APPLICATION)
            return [each for each in found.standbys if each.name]  # it is listed before it is named

        (found,) = wait_until(seen, "the standby to be seen")
        assert (found.name, found.asynchronous) == ("pg_receivewal", True)
    finally:
        receiving.terminate()
        receiving.communicate()
