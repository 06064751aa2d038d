"""Work that all pods share, starts above all: so many at a time, of which no pod, nor tenant, takes another's part.

Rules:
- A slot is for the time in which a start costs the node something. One that takes longer than `slow_after_s` mostly
  waits, and for what its pod chose (a FIFO, a file system that never answers): it becomes one of the slow ones, whose
  number is bounded as well, and its slot is another's. Where not the time tells, but a rate, whoever knows it says so.
- What counts against a pod's share is both, until the start has ended. So a pod that makes its starts hang has in the
  end none left, and every other pod all of its own.
- A tenant, a pod's namespace, can have any number of pods. Of eight slots it has seven at most, so that another's start
  finds one also before any of its own was slow.
- Who has least under way comes first, by tenant, then by pod, and of those who waits longest.
- A tenant whose starts were slow of late shares half of the slots with its like, whatever pods they are for: it can't
  take all of them again in the moment before that shows.
- Where there are too many slow ones, the further ones keep their slots; then a slow one of the tenant that has most is
  given up, unless it is younger than `PATIENCE_S`: on a busy node honest starts are slow, too.

Where the work is not a pod's but an image's, read image for pod. What has no tenant is a tenant of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from cri_shim.errors import DeadlineError
from cri_shim.operations import step

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SLOW_AFTER_S = 2.0
"""An ordinary start takes some 0.1 s."""
PATIENCE_S = 10.0
"""What no start is given up before, however many there are."""
REMEMBERED_S = 120.0
"""How long a tenant is known for a slow start."""


class Share(NamedTuple):
    """The most that one owner may have under way at a time, the slow ones among them."""

    owner: str
    """`pod 1a2b…`: how a message names it."""
    most: int


class _Owners(NamedTuple):
    """Whose a start is."""

    tenant: str
    shares: tuple[Share, ...]
    """The last is the pod's."""

    @property
    def pod(self) -> str:
        return self.shares[-1].owner


class Slot:
    """One start: waiting, with a slot, slow, or ended."""

    __slots__ = (
        *("_slots", "began_s", "granted", "is_quick", "is_suspect", "is_under_way"),
        *("limit", "owners", "timer"),
    )

    def __init__(self, slots: Slots, owners: _Owners, granted: asyncio.Future[None]) -> None:
        self._slots = slots
        self.owners = owners
        self.granted = granted
        self.is_under_way = False
        self.is_quick = False
        self.is_suspect = False
        self.began_s = 0.0
        self.timer: asyncio.TimerHandle | None = None
        self.limit: asyncio.Timeout | None = None
        """While it is under way; none once it was given up."""

    def now_slow(self) -> None:
        """It is known to be slow, however long it has taken: its slot is another's once one more may be slow."""
        self._slots.make_slow(self)

    def end(self) -> None:
        """What it shares with others is over, though the block goes on: nobody gives it up any more."""
        self.limit = None
        self._slots.leave(self)


class Slots:
    """`total` starts at a time, and at most `slow_total` slow ones beside them; on the loop's thread only."""

    def __init__(
        self,
        total: int,
        *,
        slow_total: int | None = None,
        slow_after_s: float | None = SLOW_AFTER_S,
        patience_s: float | None = None,
    ) -> None:
        """`patience_s` stands for `PATIENCE_S` where the work is longer than a start.

        With `slow_after_s` None nothing is slow but what says so (`Slot.now_slow`).
        """
        self._total = total
        self._of_tenant = total - (total + 4) // 8
        self._slow_total = 2 * total if slow_total is None else slow_total
        self._slow_after_s = slow_after_s
        self._patience_s = PATIENCE_S if patience_s is None else patience_s
        self._waiting: OrderedDict[_Owners, OrderedDict[Slot, None]] = OrderedDict()
        self._under_way: Counter[str] = Counter()
        """By owner, with a slot or slow."""
        self._of_tenants: Counter[str] = Counter()
        """The same by tenant."""
        self._quick_of: Counter[str] = Counter()
        """Of those, the ones with a slot."""
        self._quick = 0
        self._suspects_quick = 0
        self._slow: OrderedDict[Slot, None] = OrderedDict()
        self._stuck: OrderedDict[Slot, None] = OrderedDict()
        """Slow with a slot: there are too many slow ones already."""
        self._later: asyncio.TimerHandle | None = None
        self._known_until: dict[str, float] = {}
        """Tenants whose starts were slow of late."""

    @contextlib.asynccontextmanager
    async def slot(
        self,
        doing: str,
        *shares: Share,
        tenant: str = "",
        timeout_s: float | None = None,
        waiting: str = "waiting for other starts",
    ) -> AsyncIterator[Slot]:
        """A slot for as long as the block runs; of the shares, the last is the pod's. `waiting` is the step's name.

        `tenant` is how a message names it (`namespace a`); the pod's owner where it is empty.

        Raises DeadlineError, which says of whom too many are under way, after `timeout_s` without one; and when the
        block is given up, whose own undoing of a cancellation comes first.
        """
        owners = _Owners(tenant or shares[-1].owner, shares)
        turn = Slot(self, owners, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(owners, OrderedDict())[turn] = None
        self._serve()
        try:
            try:
                with step(waiting):
                    async with asyncio.timeout(timeout_s):
                        await turn.granted
            except TimeoutError:
                raise DeadlineError(
                    f"{doing} was not begun within {timeout_s:g} s: {self._in_the_way(turn)} are under way"
                ) from None
            limit = asyncio.timeout(None)
            try:
                async with limit:
                    turn.limit = limit
                    yield turn
            except TimeoutError:
                if not limit.expired():
                    raise
                raise DeadlineError(
                    f"{doing} was given up after {time.monotonic() - turn.began_s:.0f} s: too many that are as "
                    f"slow are under way, and of {owners.tenant} most"
                ) from None
        finally:
            self.leave(turn)

    def _in_the_way(self, turn: Slot) -> str:
        for share in turn.owners.shares:
            if (others := self._under_way[share.owner]) >= share.most:
                return f"{others} others of {share.owner}"
        return f"{self._quick} others"

    def _serve(self) -> None:
        """Give out what is free."""
        while self._quick < self._total:
            # Not by a sort: what may go on changes with every slot that is given.
            owners = min(filter(self._may_have_one, self._waiting), key=self._having, default=None)
            if owners is None:
                return
            turns = self._waiting[owners]
            turn, _ = turns.popitem(last=False)
            # Those of the same owner that wait come after all others.
            self._waiting.move_to_end(owners)
            if not turns:
                del self._waiting[owners]
            if not turn.granted.done():  # it has gone away, and its task doesn't know yet
                self._grant(turn)

    def _may_have_one(self, owners: _Owners) -> bool:
        if any(self._under_way[share.owner] >= share.most for share in owners.shares):
            return False
        if self._is_suspect(owners.tenant):
            return self._suspects_quick < max(1, self._total // 2)
        # Who is a tenant for itself has shares enough.
        return owners.tenant == owners.pod or self._quick_of[owners.tenant] < self._of_tenant

    def _having(self, owners: _Owners) -> tuple[int, int]:
        return self._of_tenants[owners.tenant], self._under_way[owners.pod]

    def _is_suspect(self, tenant: str) -> bool:
        return self._known_until.get(tenant, 0.0) > time.monotonic()

    def _grant(self, turn: Slot) -> None:
        tenant, shares = turn.owners
        self._under_way.update(share.owner for share in shares)
        self._of_tenants[tenant] += 1
        self._quick += 1
        self._quick_of[tenant] += 1
        turn.is_under_way = turn.is_quick = True
        turn.began_s = time.monotonic()
        if self._is_suspect(tenant):
            self._suspect(turn)
        if self._slow_after_s is not None:
            loop = asyncio.get_running_loop()
            turn.timer = loop.call_later(self._slow_after_s, self.make_slow, turn)
        turn.granted.set_result(None)

    def _suspect(self, turn: Slot) -> None:
        if not turn.is_suspect:
            turn.is_suspect = True
            self._suspects_quick += 1

    def make_slow(self, turn: Slot) -> None:
        """See `Slot.now_slow`."""
        if not turn.is_quick or turn in self._stuck:
            return
        now = time.monotonic()
        self._known_until = {who: until for who, until in self._known_until.items() if until > now}
        self._known_until[turn.owners.tenant] = now + REMEMBERED_S
        self._suspect(turn)
        self._stuck[turn] = None
        self._settle()

    def _settle(self) -> None:
        """Take slots back from slow ones, the longest first, as far as they may be so many; give out what is free."""
        while self._stuck and len(self._slow) < self._slow_total:
            turn, _ = self._stuck.popitem(last=False)
            self._give_back(turn)
            self._slow[turn] = None
        if self._stuck:
            self._give_up_one()
        self._serve()

    def _give_up_one(self) -> None:
        """Make room among the slow ones, or come again when one may be given up."""
        still = [turn for turn in self._slow if turn.limit is not None]
        if len(self._slow) - len(still) >= len(self._stuck) or not still:
            return  # room comes as it is
        loop = asyncio.get_running_loop()
        of_tenant = Counter(turn.owners.tenant for turn in still)
        of_pod = Counter(turn.owners.pod for turn in still)
        turn = max(  # the oldest of them
            still, key=lambda each: (of_tenant[each.owners.tenant], of_pod[each.owners.pod])
        )
        left_s = turn.began_s + self._patience_s - time.monotonic()
        if left_s > 0:
            self._later = self._later or loop.call_later(left_s, self._come_again)
        elif turn.limit is not None:
            turn.limit.reschedule(loop.time())
            turn.limit = None

    def _come_again(self) -> None:
        self._later = None
        self._settle()

    def _give_back(self, turn: Slot) -> None:
        turn.is_quick = False
        self._quick -= 1
        self._suspects_quick -= turn.is_suspect
        _decrease(self._quick_of, turn.owners.tenant)

    def leave(self, turn: Slot) -> None:
        """See `Slot.end`; or it waits no longer."""
        if not turn.granted.done() or turn.granted.cancelled():  # it never had one
            turns = self._waiting.get(turn.owners, OrderedDict())
            turns.pop(turn, None)
            if not turns:
                self._waiting.pop(turn.owners, None)
            return
        if not turn.is_under_way:
            return
        turn.is_under_way = False
        if turn.timer is not None:
            turn.timer.cancel()
        self._stuck.pop(turn, None)
        if turn.is_quick:
            self._give_back(turn)
        else:
            del self._slow[turn]
        for share in turn.owners.shares:
            _decrease(self._under_way, share.owner)
        _decrease(self._of_tenants, turn.owners.tenant)
        self._settle()


def _decrease(counter: Counter[str], key: str) -> None:
    """Nothing is kept of who has nothing."""
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
