"""The state of the protocol: the database, the queue, the processes and the faults that may still occur."""

from __future__ import annotations

from typing import NamedTuple

USERS = (1, 2)
"""In the order of their rank."""


class Message(NamedTuple):
    """A message on the line. `key` tells equal tasks apart: the request, assignment or generation.

    An ask's key is its request id, and its agent has the same number.
    """

    task: str
    key: int


class Hold(NamedTuple):
    """An active assignment."""

    id: int
    user: int
    agent: int
    lapsed: bool = False


class Generation(NamedTuple):
    """A build. `seen` is what had been completed when it began; `rows` has each user's place."""

    id: int
    rows: tuple[tuple[int, str], ...]
    seen: frozenset[int] = frozenset()


class Database(NamedTuple):
    """What transactions have committed."""

    term: int = 0
    mark: int = 0
    """Which of all terms that were ever begun this one is: the random id beside its number."""
    holds: tuple[Hold, ...] = ()
    ended: tuple[tuple[int, str], ...] = ()
    answers: tuple[tuple[int, int], ...] = ()
    """By request id: the assignment; 0 for 'empty'."""
    completed: frozenset[int] = frozenset()
    published: Generation = Generation(0, ())
    built: Generation | None = None
    assignments: int = 0


class Sequencer(NamedTuple):
    """A process: `does` is where it stands, `term` what it believes in."""

    does: str = "stands by"
    term: int = 0
    mark: int = 0
    message: Message | None = None
    answer: str = ""
    row: int = 0
    """Find-then-update only: the generation of the row that was found."""


class Client(NamedTuple):
    """An agent's side: 'new', 'asked', 'holds', 'finishing', 'done'."""

    stage: str = "new"
    answer: str = ""
    lost: bool = False
    """Redis lost what was asked: nobody but the client itself can ask again."""


class Budget(NamedTuple):
    """How often each of these may still happen."""

    crashes: int = 0
    freezes: int = 0
    """The lock's connection goes, and the leader does not notice yet: frozen, or cut off."""
    cuts: int = 0
    """A transaction commits and the connection goes, so that it is done again in place."""
    losses: int = 0
    """Redis comes back without its data."""
    repeats: int = 0
    """A client asks again with the same request id while the first message is on its way."""
    builds: int = 0
    lapses: int = 0
    returns: int = 0
    """The database moves back to what it was: an asynchronous standby is promoted, or a backup is
    restored. What it had committed since is gone, and so are the locks."""


class State(NamedTuple):
    """Everything at one instant."""

    db: Database
    waiting: tuple[Message, ...]
    """The assignment queue, its head first."""
    taken: tuple[tuple[tuple[int, int], tuple[Message, ...]], ...]
    """By mark and term: what its sequencer has taken and not acknowledged, in the order in which it did."""
    sequencers: tuple[Sequencer, ...]
    lock: int
    """Who has the advisory lock; -1 for nobody."""
    clients: tuple[Client, ...]
    left: Budget
    arrived: tuple[int, ...] = ()
    """The requests in the order in which each was first sent."""
    breach: str = ""
    marks: int = 0
    """How many terms were ever begun, whatever the database knows of them."""
    copy: Database | None = None
    """What a standby has of the database, or a backup."""
    returned: bool = False
    """The database has moved back: what was told may be of what it has lost."""
