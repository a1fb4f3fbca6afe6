"""The steps of the protocol between clients, Redis, sequencers and PostgreSQL.

Each step is one that cannot be divided there: one Redis command, one database transaction, one
loss. Possible steps are taken in any order, so whatever can happen between two steps does. The
faults are bounded by a `Budget`; between them the search is complete.

What is not modelled: time (a lease lapses, a leader falls silent, whenever it likes), the facts of
the CRM, pause, skip, release and renew, and more than one dialer queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.model.protocol_state import (
    USERS,
    Budget,
    Client,
    Database,
    Generation,
    Hold,
    Message,
    Sequencer,
    State,
)


class Step(NamedTuple):
    """What happens, what then is, and whether it was a fault, which need never happen."""

    what: str
    state: State
    is_fault: bool = False


@dataclass(frozen=True)
class Protocol:
    """The protocol with each of its safeguards, any of which may be left out."""

    budget: Budget
    agents: int = 2
    sequencers: int = 2
    fenced: bool = True
    """A turn proves its term."""
    marked: bool = True
    """A term is known by a random id too, which no copy of the past has."""
    keeps_requests: bool = True
    """A request id that was answered gets that answer."""
    looks_at_holds: bool = True
    """A claim passes over whoever is held, whatever their entry says."""
    brings_in: bool = True
    """A publication marks who is held, and who was completed since its build began."""
    acknowledges_late: bool = True
    puts_back: str = "head"
    """Where a new leader puts what was taken: 'head', 'tail' or 'nowhere'."""
    commits_first: bool = True
    """An answer is told when it is committed, not before."""
    finds_then_updates: bool = False
    """The dialer that failed: find, then update by row; a build replaces all rows by itself."""

    def begin(self) -> State:
        """Two users in a published generation, nobody asking yet."""
        ready = tuple((user, "ready") for user in USERS)
        return State(
            db=Database(published=Generation(1, ready)),
            waiting=(),
            taken=(),
            sequencers=(Sequencer(),) * self.sequencers,
            lock=-1,
            clients=(Client(),) * self.agents,
            left=self.budget,
        )

    def steps(self, state: State) -> Iterator[Step]:
        """Whatever can happen next."""
        for place in range(self.sequencers):
            yield from self._sequencer(state, place)
        for place in range(self.agents):
            yield from self._client(state, place)
        yield from self._others(state)

    def settled(self, state: State) -> bool:
        """Everybody has been answered."""
        return all(client.stage == "done" for client in state.clients)

    # The clients.

    def _client(self, state: State, place: int) -> Iterator[Step]:
        client, agent = state.clients[place], place + 1
        if client.stage == "new":
            asked = _sent(state, Message("ask", agent), place, "asked")
            yield Step(f"agent {agent} asks", asked._replace(arrived=(*state.arrived, agent)))
        if client.stage == "holds":
            held = int(client.answer.split()[1])
            yield Step(
                f"agent {agent} completes assignment {held}",
                _sent(state, Message("complete", held), place, "finishing"),
            )
        if client.stage in {"asked", "finishing"} and (client.lost or state.left.repeats):
            key = agent if client.stage == "asked" else int(client.answer.split()[1])
            task = "ask" if client.stage == "asked" else "complete"
            again = _sent(state, Message(task, key), place, client.stage)
            if not client.lost:
                again = _spent(again, "repeats")
            yield Step(f"agent {agent} says again: {task} {key}", again, is_fault=not client.lost)

    # The sequencers.

    def _sequencer(self, state: State, place: int) -> Iterator[Step]:
        me = state.sequencers[place]
        name = "AB"[place]
        if me.does == "stands by":
            if state.lock == -1:
                yield self._lead(state, place)
            return
        if state.lock != place:
            yield Step(f"{name} sees that its place is gone", _ended(state, place))
        if state.left.crashes:
            crashed = _ended(_spent(state, "crashes"), place)
            yield Step(f"{name} is killed", crashed, is_fault=True)
        if me.does == "takes up":
            yield self._take_up(state, place)
        elif me.does == "ready":
            yield from self._ready(state, place)
        elif me.does in {"has", "found"}:
            yield from self._has(state, place)
        elif me.does == "committed":
            done = me._replace(does="answered")
            told = _told(state, me.message, me.answer)
            yield Step(f"{name} answers: {me.answer}", _with(told, place, done))
        elif me.does == "answered":
            acknowledged = _forgotten(state, self._list(me), me.message)
            free = Sequencer("ready", me.term, me.mark)
            yield Step(f"{name} acknowledges", _with(acknowledged, place, free))

    def _lead(self, state: State, place: int) -> Step:
        # The term is raised on the lock's own connection: who has lost it raises nothing.
        term, mark = state.db.term + 1, state.marks + 1
        led = state._replace(db=state.db._replace(term=term, mark=mark), lock=place, marks=mark)
        leading = Sequencer("takes up", term, mark)
        return Step(f"{'AB'[place]} leads in term {term}", _with(led, place, leading))

    def _take_up(self, state: State, place: int) -> Step:
        """One LMOVE from the latest other term's list, its last taken first; then it is ready."""
        me, name = state.sequencers[place], "AB"[place]
        moved = self._moved_back(state, me, begins=True)
        if moved is None:
            return Step(f"{name} is ready", _with(state, place, me._replace(does="ready")))
        message, after = moved
        return Step(f"{name} puts back {message.task} {message.key}", after)

    def _list(self, of: Sequencer) -> tuple[int, int]:
        """What its list of taken messages is named by."""
        return of.mark if self.marked else 0, of.term

    def _moved_back(
        self, state: State, me: Sequencer, *, begins: bool
    ) -> tuple[Message, State] | None:
        """With an id every list is found, and a leader that does not begin leaves later ones."""
        if self.puts_back == "nowhere":
            return None
        mine = self._list(me)
        for each, messages in reversed(state.taken):
            if each < mine or (self.marked and begins and each != mine):
                back = messages[-1]
                waiting = state.waiting
                waiting = (back, *waiting) if self.puts_back == "head" else (*waiting, back)
                after = _forgotten(state, each, back)
                return back, after._replace(waiting=waiting)
        return None

    def _ready(self, state: State, place: int) -> Iterator[Step]:
        me, name = state.sequencers[place], "AB"[place]
        if state.waiting:
            message, *rest = state.waiting
            left = state._replace(waiting=tuple(rest))
            if self.acknowledges_late:
                left = _listed(left, self._list(me), message)
            has = me._replace(does="has", message=message)
            yield Step(f"{name} takes {message.task} {message.key}", _with(left, place, has))
        moved = self._moved_back(state, me, begins=False)
        if moved is not None:
            yield Step(f"{name} sweeps {moved[0].task} {moved[0].key} back", moved[1])

    def _has(self, state: State, place: int) -> Iterator[Step]:
        me, name = state.sequencers[place], "AB"[place]
        assert me.message is not None
        if self.finds_then_updates and me.message.task == "ask":
            yield self._find_or_update(state, place)
            return
        proved = me.term == state.db.term and (not self.marked or me.mark == state.db.mark)
        if self.fenced and not proved:
            yield Step(f"{name} is overtaken: nothing is committed", _ended(state, place))
            return
        db, answer, breach = self._turn(state, me.message)
        if me.term != state.db.term:
            breach = f"9: term {me.term} commits in term {state.db.term}"
        elif me.mark != state.db.mark:
            breach = f"9: term {me.term} commits in the term {state.db.term} of another"
        after = state._replace(db=db, breach=breach)
        if not self.commits_first and me.does == "has":
            early = _told(state, me.message, answer)
            yield Step(f"{name} answers: {answer}", _with(early, place, me._replace(does="found")))
            return
        committed = me._replace(does="committed", answer=answer)
        what = f"{name} commits {me.message.task} {me.message.key}: {answer}"
        yield Step(what, _with(after, place, committed))
        if state.left.cuts:
            yield Step(f"{what}, and does not hear of it", _spent(after, "cuts"), is_fault=True)

    # One transaction.

    def _turn(self, state: State, message: Message) -> tuple[Database, str, str]:
        """The database afterwards, the answer, and what the transaction breaks."""
        if message.task == "ask":
            return self._claim(state, message.key)
        db = state.db
        if message.task == "complete":
            return self._complete(db, message.key)
        if message.task == "expire":
            lapsed = [hold for hold in db.holds if hold.lapsed]
            for hold in lapsed:
                db = _released(db, hold, "expired", "ready")
            return db, f"expired {len(lapsed)}", ""
        return self._publish(db, message.key)

    def _claim(self, state: State, request: int) -> tuple[Database, str, str]:
        db = state.db
        known = dict(db.answers)
        if self.keeps_requests and request in known:
            return db, _answer(known[request]), ""
        breach = self._out_of_order(state, request)
        mine = [hold.id for hold in db.holds if hold.agent == request]
        if mine:
            return _kept(db, request, mine[0]), _answer(mine[0]), breach
        held = {hold.user for hold in db.holds}
        ready = [user for user, how in db.published.rows if how == "ready"]
        if self.looks_at_holds:
            ready = [user for user in ready if user not in held]
        wrong = _wrongly(db, ready[0] if ready else None)
        if not ready:
            return _kept(db, request, 0), "empty", wrong or breach
        if known.get(request):
            wrong = f"5: request {request} hands out a second user"
        number = db.assignments + 1
        db = _marked(db, ready[0], "held")._replace(
            holds=(*db.holds, Hold(number, ready[0], request)), assignments=number
        )
        return _kept(db, request, number), _answer(number), wrong or breach

    def _out_of_order(self, state: State, request: int) -> str:
        """An earlier request has no answer yet.

        Not judged where a leader froze, which may take one message out of its order when it wakes,
        nor where Redis lost what was asked, or the database what was answered.
        """
        left, had = state.left, self.budget
        if (left.freezes, left.losses) != (had.freezes, had.losses) or state.returned:
            return ""
        known = dict(state.db.answers)
        before = state.arrived[: state.arrived.index(request)]
        early = [each for each in before if each not in known]
        return f"order: request {request} is served before request {early[0]}" if early else ""

    def _complete(self, db: Database, number: int) -> tuple[Database, str, str]:
        for hold in db.holds:
            if hold.id == number:
                db = _released(db, hold, "completed", "out")
                return db._replace(completed=db.completed | {hold.user}), "completed", ""
        if dict(db.ended).get(number) == "completed":
            return db, "completed", ""
        return db, "refused", ""

    def _publish(self, db: Database, number: int) -> tuple[Database, str, str]:
        if db.built is None or db.built.id != number:
            return db, "published before", ""
        rows = dict(db.built.rows)
        if self.brings_in:
            rows |= {hold.user: "held" for hold in db.holds if hold.user in rows}
            since = db.completed - db.built.seen
            rows |= dict.fromkeys((user for user in since if user in rows), "out")
        generation = Generation(number, tuple(rows.items()))
        return db._replace(published=generation, built=None), "published", ""

    def _find_or_update(self, state: State, place: int) -> Step:
        """Two transactions, and the rows of the first may be gone in the second."""
        me, db, name = state.sequencers[place], state.db, "AB"[place]
        assert me.message is not None
        ready = [user for user, how in db.published.rows if how == "ready"]
        if me.does == "has":
            if not ready:
                none = me._replace(does="committed", answer="empty")
                return Step(f"{name} finds nobody", _with(state, place, none))
            found = me._replace(does="found", row=db.published.id, answer=str(ready[0]))
            return Step(f"{name} finds user {ready[0]}", _with(state, place, found))
        user, number = int(me.answer), db.assignments + 1
        if db.published.id != me.row:
            gone = state._replace(breach=f"2: the row of user {user} is gone")
            return Step(f"{name} updates the row of user {user}: not found", gone)
        db = _marked(db, user, "held")._replace(
            holds=(*db.holds, Hold(number, user, me.message.key)), assignments=number
        )
        committed = me._replace(does="committed", answer=_answer(number))
        updated = _with(state._replace(db=_kept(db, me.message.key, number)), place, committed)
        return Step(f"{name} updates the row of user {user}", updated)

    # Builds, leases, and what goes wrong elsewhere.

    def _others(self, state: State) -> Iterator[Step]:
        db = state.db
        if state.left.builds and db.built is None:
            begun = _spent(state, "builds")
            rows = tuple((user, "ready") for user in USERS if user not in db.completed)
            built = Generation(db.published.id + 1, rows, db.completed)
            if self.finds_then_updates:
                breach = f"2: the hold on user {db.holds[0].user} is deleted" if db.holds else ""
                emptied = db._replace(published=built, holds=())
                yield Step("a rebuild replaces all rows", begun._replace(db=emptied, breach=breach))
            else:
                yield Step(
                    f"generation {built.id} is built", begun._replace(db=db._replace(built=built))
                )
        if db.built is not None and not _under_way(state, Message("publish", db.built.id)):
            # Sent when it is built, and again if it was lost.
            publish = Message("publish", db.built.id)
            yield Step("its publication is sent", state._replace(waiting=(*state.waiting, publish)))
        if state.left.lapses:
            for hold in db.holds:
                if not hold.lapsed:
                    holds = tuple(
                        each._replace(lapsed=each.lapsed or each == hold) for each in db.holds
                    )
                    lapsed = _spent(state, "lapses")._replace(db=db._replace(holds=holds))
                    yield Step(f"the lease of assignment {hold.id} lapses", lapsed)
        if any(hold.lapsed for hold in db.holds) and not _under_way(state, Message("expire", 0)):
            sent = state._replace(waiting=(*state.waiting, Message("expire", 0)))
            yield Step("beat sends expire", sent)
        yield from self._faults(state)

    def _faults(self, state: State) -> Iterator[Step]:
        if state.left.freezes and state.lock != -1:
            freed = _spent(state, "freezes")._replace(lock=-1)
            yield Step(f"{'AB'[state.lock]} loses the lock unawares", freed, is_fault=True)
        if state.left.returns and state.copy is None:
            yield Step("a standby falls behind", state._replace(copy=state.db), is_fault=True)
        if state.copy is not None:
            # Ids of assignments are random: what was lost is not given to others.
            back = state.copy._replace(assignments=state.db.assignments)
            yield Step(
                "the standby is promoted",
                _spent(state, "returns")._replace(db=back, copy=None, lock=-1, returned=True),
                is_fault=True,
            )
        if state.left.losses:
            yield Step(
                "Redis loses its data", _spent(_without_redis(state), "losses"), is_fault=True
            )


def _wrongly(db: Database, user: int | None) -> str:
    """What is broken by handing out this user, or nobody."""
    held = {hold.user for hold in db.holds}
    best = [each for each, _ in db.published.rows if each not in held | db.completed]
    if user is None:
        return f"4: 'empty' while user {best[0]} is claimable" if best else ""
    if user in held:
        return f"1: user {user} is handed out while held"
    if user in db.completed:
        return f"2: user {user} is handed out after a build that had not seen their completion"
    return "" if user == best[0] else f"4: user {user} is handed out before user {best[0]}"


def _answer(assignment: int) -> str:
    return f"assignment {assignment}" if assignment else "empty"


def _kept(db: Database, request: int, assignment: int) -> Database:
    return db._replace(answers=tuple(sorted({**dict(db.answers), request: assignment}.items())))


def _marked(db: Database, user: int, how: str) -> Database:
    rows = tuple((each, how if each == user else was) for each, was in db.published.rows)
    return db._replace(published=db.published._replace(rows=rows))


def _released(db: Database, hold: Hold, how: str, entry: str) -> Database:
    holds = tuple(each for each in db.holds if each.id != hold.id)
    ended = tuple(sorted((*db.ended, (hold.id, how))))
    return _marked(db._replace(holds=holds, ended=ended), hold.user, entry)


def _with(state: State, place: int, sequencer: Sequencer) -> State:
    all_of_them = list(state.sequencers)
    all_of_them[place] = sequencer
    return state._replace(sequencers=tuple(all_of_them))


def _ended(state: State, place: int) -> State:
    """The process is gone, and another was started in its place; its lock goes with it."""
    free = state._replace(lock=-1) if state.lock == place else state
    return _with(free, place, Sequencer())


def _spent(state: State, what: str) -> State:
    return state._replace(left=state.left._replace(**{what: getattr(state.left, what) - 1}))


def _sent(state: State, message: Message, place: int, stage: str) -> State:
    clients = list(state.clients)
    clients[place] = clients[place]._replace(stage=stage, lost=False)
    return state._replace(waiting=(*state.waiting, message), clients=tuple(clients))


def _listed(state: State, term: tuple[int, int], message: Message) -> State:
    taken = dict(state.taken)
    taken[term] = (*taken.get(term, ()), message)
    return state._replace(taken=tuple(sorted(taken.items())))


def _forgotten(state: State, term: tuple[int, int], message: Message | None) -> State:
    """LREM: one of them, the last taken; nothing where it is not listed any more."""
    taken = dict(state.taken)
    listed = list(taken.get(term, ()))
    if message not in listed:
        return state
    del listed[len(listed) - 1 - listed[::-1].index(message)]
    taken[term] = tuple(listed)
    return state._replace(taken=tuple((each, has) for each, has in sorted(taken.items()) if has))


def _told(state: State, message: Message | None, answer: str) -> State:
    """The answer is in Redis, and whoever waits for it has it."""
    if message is None or message.task not in {"ask", "complete"}:
        return state
    breach = state.breach
    number = int(answer.split()[1]) if answer.startswith("assignment") else 0
    db = state.db
    committed = {hold.id for hold in db.holds} | dict(db.ended).keys()
    if number and number not in committed and not state.returned:
        breach = f"5: agent {message.key} is told of assignment {number}, which is not committed"
    clients = list(state.clients)
    for place, client in enumerate(clients):
        if message.task == "ask" and message.key == place + 1:
            if client.stage == "asked":
                # The first agent makes calls; what others hold lapses or stays.
                goes_on = number and place == 0
                clients[place] = Client("holds" if goes_on else "done", answer)
            elif client.answer != answer and not state.returned:
                breach = f"5: agent {message.key} is told {answer} after {client.answer}"
        elif message.task == "complete" and client.stage == "finishing":
            clients[place] = client._replace(stage="done", lost=False)
    return state._replace(clients=tuple(clients), breach=breach)


def _under_way(state: State, message: Message) -> bool:
    return (
        message in state.waiting
        or any(message in listed for _, listed in state.taken)
        or any(each.message == message for each in state.sequencers)
    )


def _without_redis(state: State) -> State:
    clients = tuple(
        client._replace(lost=client.stage in {"asked", "finishing"}) for client in state.clients
    )
    return state._replace(waiting=(), taken=(), clients=clients)
