"""Explain, in the answer to a request, why no user is claimable."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Protocol

from sqlalchemy import ARRAY, BigInteger, any_, bindparam, func, select

from assignment_workers.assignment.active_assignments import ACTIVE
from assignment_workers.assignment.answers import Empty
from assignment_workers.assignment.generations.eligibility_status import (
    EligibilityStatus,
    members,
    tally,
)
from assignment_workers.assignment.generations.entries import WAITING
from assignment_workers.assignment.transaction import FencedTransaction
from assignment_workers.policy.queues import Policy
from assignment_workers.policy.rules import RuleEffect
from assignment_workers.schema.tables import Assignment, Entry

RETRY_SECONDS = 30.0
"""Longest time in seconds after which an agent who got no user is to ask again."""

LOOKED_AT = 64
"""Number of users, those with the best scores, who are judged to find why none is claimable.

The users are those whose score row names the dialer queue. Cost: one or two milliseconds.
"""


class QueueState(Protocol):
    """A dialer queue as the claim read it.

    `paused`: True if the queue is paused. `generation`: the number of its published generation.
    """

    @property
    def paused(self) -> bool: ...
    @property
    def generation(self) -> int | None: ...


class Why:
    """The search for the reason why no user is claimable; each dialer queue is read once."""

    def __init__(
        self, transaction: FencedTransaction, policies: Mapping[str, Policy], taken: Collection[int]
    ) -> None:
        self.transaction = transaction
        self.policies = policies
        self.taken = list(taken)
        """Users assigned in this transaction."""
        self._found: dict[str, dict[str, datetime | None]] = {}

    def nothing_claimable(
        self, queue: str | None, places: Mapping[str, QueueState], *, skipped: bool
    ) -> Empty:
        """Return the answer to a request for which no dialer queue in `places` has a user.

        `queue`: the name of the dialer queue if `places` has only one, else None. `skipped`: True
        if there are users whom the agent skipped less than the time of the setting `skip_agent`
        ago.

        The answer has one of these reasons for each dialer queue:

        - `paused`: an operator paused the queue.
        - `skipped_by_agent`: `skipped` is True, and no user other than the skipped ones is
          claimable.
        - `rebuild_stale`: an eligible user is missing from the published generation. The next build
          includes this user or, if the queue has a size limit, may choose other users first.
        - `drained`: an operator drained the queue.
        - The name of a rule, such as `cooling_down`: this rule excludes users for a time.
        - `all_held`: agents hold the users.
        - `waiting`: the entries of the users are waiting. For example, an agent skipped the users,
          or an earlier claim found a rule that excluded them for a time.
        - `none_in_pool`: no user's score row names the queue.
        - `none_eligible`: none of the other reasons was found. For example, all judged users have
          converted, or break a rule that excludes them until a fact about them changes.

        If several of the reasons (a rule, `all_held` and `waiting`) apply to the judged users, the
        answer has the one that applies to the greatest number of them.

        Only `LOOKED_AT` users, those with the lowest scores, who are called first, are judged. The
        command `explain --queue` judges more users, and with `--whole` all of them. Cost: two index
        reads for all dialer queues together, and a read of `LOOKED_AT` users for each dialer queue,
        once per transaction.
        """
        generations = [each.generation for each in places.values() if each.generation is not None]
        waiting = _times(self.transaction, _WAITING, generations=generations)
        held = _times(self.transaction, _HELD, queues=list(places))
        why: dict[str, str] = {}
        times = [*waiting.values(), *held.values()]
        for name, place in places.items():
            if place.paused:
                why[name] = "paused"
                continue
            stands = self._stands(name, place)
            times += [at for at in stands.values() if at is not None]
            word = self._word(self.policies[name], stands)
            if skipped and word in {EligibilityStatus.CLAIMABLE, "none_eligible", "none_in_pool"}:
                word = "skipped_by_agent"
            elif word in {EligibilityStatus.CLAIMABLE, "none_eligible"}:
                word = _known(place, name, waiting, held) or "none_eligible"
            why[name] = word
        soonest = min(times, default=None)
        seconds = (soonest - self.transaction.now).total_seconds() if soonest else RETRY_SECONDS
        return Empty(queue=queue, retry_after=min(max(seconds, 1.0), RETRY_SECONDS), why=why)

    def _stands(self, name: str, place: QueueState) -> dict[str, datetime | None]:
        """Judge the best-scored users of a dialer queue; return their eligibility statuses.

        `name`: the name of the dialer queue; `place`: its state. The result maps each status to the
        earliest time at which that status ends for one of these users; None: unknown. The most
        frequent status comes first.
        """
        if name not in self._found:
            parameters = {"generation": place.generation, "taken": self.taken}
            zones = self.transaction.crm_reader.zones if self.policies[name].hours else ()
            now = {
                "instant": self.transaction.now,
                **self.policies[name].at(self.transaction.now, zones),
            }
            policy = self.policies[name]
            rows = self.transaction.crm_reader.judge(
                tally(policy, LOOKED_AT), parameters | now, users=members(policy, LOOKED_AT)
            )
            rows = sorted(rows, key=lambda row: (-row.users, row.stands))
            self._found[name] = {row.stands: row.free_at for row in rows}
        return self._found[name]

    @staticmethod
    def _word(policy: Policy, stands: Collection[str]) -> str:
        if not stands:
            return "none_in_pool"
        if EligibilityStatus.NOT_IN_GENERATION in stands or EligibilityStatus.TAKEN_OUT in stands:
            return "rebuild_stale"
        if EligibilityStatus.DRAINED in stands:
            return EligibilityStatus.DRAINED
        if EligibilityStatus.CLAIMABLE in stands:
            return EligibilityStatus.CLAIMABLE
        passing = {rule.name: rule.name for rule in policy.rules if rule.kind is RuleEffect.RESTING}
        passing |= {EligibilityStatus.HELD: "all_held", EligibilityStatus.WAITING: "waiting"}
        return next((passing[each] for each in stands if each in passing), "none_eligible")


def _known(
    place: QueueState, name: str, waiting: Collection[object], held: Collection[object]
) -> str | None:
    if place.generation in waiting:
        return "waiting"
    return "all_held" if name in held else None


def _times(
    transaction: FencedTransaction, statement: object, **parameters: object
) -> dict[object, datetime]:
    rows = transaction.connection.execute(statement, parameters)  # type: ignore[call-overload]
    return {key: at for key, at in rows if at is not None}


_generations = (
    func.unnest(bindparam("generations", type_=ARRAY(BigInteger)))
    .table_valued("id")
    .render_derived()
)
_WAITING = select(
    _generations.c.id,
    select(func.min(Entry.available_from))
    .where(Entry.generation_id == _generations.c.id, Entry.state == WAITING)
    .scalar_subquery(),
)
"""Select, for each generation, the earliest time at which a user's wait ends.

Cost: one index lookup for each generation.
"""
_HELD = (
    select(Assignment.queue, func.min(Assignment.lease_expires_at))
    .where(Assignment.state == ACTIVE, Assignment.queue == any_(bindparam("queues")))
    .group_by(Assignment.queue)
)
