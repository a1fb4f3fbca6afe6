"""The claimable users of a published generation, as the events show, for the history checker."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(slots=True)
class ClaimableSet:
    """A published generation: the ranks of the users still in it, and the claimable users.

    `heap` is a binary heap of users by rank; `waiting` is a binary heap of users by the end of
    their wait. Outdated elements stay in a heap until they reach its front, and are then dropped.
    Therefore, no step costs more than the logarithm of the size.
    """

    generation: int
    ranks: dict[int, int] = field(default_factory=dict)
    ready: set[int] = field(default_factory=set)
    heap: list[tuple[int, int]] = field(default_factory=list)
    waiting: list[tuple[datetime, int]] = field(default_factory=list)
    until: dict[int, datetime] = field(default_factory=dict)
    """The time from which each waiting user is claimable, by user.

    The heap `waiting` may also have older elements for a user, with other times; they are ignored.
    """

    @classmethod
    def of(
        cls,
        generation: int,
        ranks: dict[int, int],
        *,
        held: AbstractSet[int],
        resting: Mapping[int, datetime],
    ) -> ClaimableSet:
        """Build the set of a generation as of its publication.

        `ranks`: the rank of each user, by id. `held`: users whom an agent holds. `resting`: by user
        who has to wait, the time from which the user is claimable.
        """
        ready = ranks.keys() - held - resting.keys()
        heap = [(rank, user) for user, rank in ranks.items()]
        waiting = [(at, user) for user, at in resting.items() if user not in held]
        heapq.heapify(waiting)
        heapq.heapify(heap)
        until = {user: at for at, user in waiting}
        return cls(generation, ranks, ready, heap, waiting, until)

    def make_ready(self, user: int) -> None:
        """Make the user claimable, at the rank that the user has in the generation.

        No effect on a user whom `drop` has removed from the generation.
        """
        self.until.pop(user, None)
        if user in self.ranks and user not in self.ready:
            self.ready.add(user)
            heapq.heappush(self.heap, (self.ranks[user], user))

    def wait(self, user: int, until: datetime) -> None:
        """Make the user unclaimable until that time."""
        if user in self.ranks:
            self.ready.discard(user)
            self.until[user] = until
            heapq.heappush(self.waiting, (until, user))

    def promote(self, now: datetime) -> None:
        """Make the users claimable whose waiting time is over."""
        while self.waiting and self.waiting[0][0] <= now:
            at, user = heapq.heappop(self.waiting)
            if self.until.get(user) == at:
                self.make_ready(user)

    def hold(self, user: int) -> None:
        """Make the user unclaimable; the user's rank stays."""
        self.ready.discard(user)
        self.until.pop(user, None)

    def drop(self, user: int) -> None:
        """Remove the user from the generation, including the rank."""
        self.ready.discard(user)
        self.until.pop(user, None)
        self.ranks.pop(user, None)

    def passed_over(self, rank: int, not_for: Collection[int]) -> int | None:
        """Return the claimable user whom an agent should have got before the user with rank `rank`.

        This is the best-ranked claimable user with a better rank than `rank`; None if there is
        none. `not_for`: users who are ignored, because the agent skipped them lately.
        """
        kept: list[tuple[int, int]] = []
        found = None
        while found is None and self.heap and self.heap[0][0] < rank:
            place = heapq.heappop(self.heap)
            user = place[1]
            if user in self.ready and kept[-1:] != [place]:
                kept.append(place)
                found = None if user in not_for else user
        for place in kept:
            heapq.heappush(self.heap, place)
        return found
