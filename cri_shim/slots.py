"""Fair slots for work that all pods share, mainly starts of containers: bounds the number at a time, per pod and
tenant.

"Start" below stands for any such work.

Rules:
- A slot covers the time in which a start uses the node's resources. A start that takes longer than `slow_after_s`
  mostly waits for something that its pod chose (a FIFO, a dead file system). It becomes slow: its slot is given to
  another start, and the number of slow starts is bounded, too. Work whose slowness shows in a rate calls `now_slow`
  itself.
- Both kinds count against the pod's share until the start ends. So a pod whose starts hang has no share left in the
  end, and other pods keep theirs.
- A tenant (a pod's namespace) can have any number of pods. It gets at most seven of eight slots, so that another tenant
  finds one before any start has become slow.
- A free slot goes to the tenant with the fewest starts under way, then to its pod with the fewest, then to the longest
  waiter.
- Tenants with recent slow starts share half of the slots. So they cannot take all slots again before that shows.
- If there are too many slow starts, further ones keep their slots. Then a slow start of the tenant with the most is
  given up, unless it is younger than `PATIENCE_S`: on a busy node honest starts are slow, too.

For work on images read "image" for "pod". Work without a tenant counts as a tenant of its own.
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
"""An ordinary start takes about 0.1 s."""
PATIENCE_S = 10.0
"""No start is given up before this time."""
REMEMBERED_S = 120.0
"""How long a tenant's slow start is remembered."""


class Share(NamedTuple):
    """The most starts that one owner may have under way at a time, slow ones included."""

    owner: str
    """The owner as messages name it: `pod 1a2b…`."""
    most: int


class _Owners(NamedTuple):
    """The tenant of a start, and the owners whose shares it counts against."""

    tenant: str
    shares: tuple[Share, ...]
    """The last one is the pod's."""

    @property
    def pod(self) -> str:
        return self.shares[-1].owner


class Slot:
    """One start: waiting, holding a slot, slow, or ended."""

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
        """Cancels the block when it is given up. None before the start, and once it was given up."""

    def now_slow(self) -> None:
        """Make this start slow now: its slot becomes free as soon as the bound of slow starts allows."""
        self._slots.make_slow(self)

    def end(self) -> None:
        """Return the slot before the block ends. The start is not given up any more."""
        self.limit = None
        self._slots.leave(self)


_WaitingOfTenant = OrderedDict[_Owners, OrderedDict[Slot, None]]
"""The waiting starts of one tenant, by owners."""


class Usage(NamedTuple):
    """How many starts are where."""

    waiting: int
    with_slot: int
    slow: int
    """Beside the slots."""
    shared: int
    """Owners and tenants of whom something is under way."""


class Slots:
    """At most `total` starts at a time, and `slow_total` slow ones beside them. Used on the loop's thread only."""

    def __init__(
        self,
        total: int,
        *,
        slow_total: int | None = None,
        slow_after_s: float | None = SLOW_AFTER_S,
        patience_s: float | None = None,
    ) -> None:
        """`patience_s` replaces `PATIENCE_S` for work that is longer than a start.

        With `slow_after_s` None work becomes slow only by `Slot.now_slow`.
        """
        self._total = total
        self._of_tenant = total - (total + 4) // 8
        self._slow_total = 2 * total if slow_total is None else slow_total
        self._slow_after_s = slow_after_s
        self._patience_s = PATIENCE_S if patience_s is None else patience_s
        self._waiting: OrderedDict[str, _WaitingOfTenant] = OrderedDict()
        """By tenant."""
        self._under_way: Counter[str] = Counter()
        """Starts with a slot or slow, by owner."""
        self._of_tenants: Counter[str] = Counter()
        """The same, by tenant."""
        self._quick_of: Counter[str] = Counter()
        """Starts with a slot, by tenant."""
        self._quick = 0
        self._suspects_quick = 0
        self._slow: OrderedDict[Slot, None] = OrderedDict()
        self._stuck: OrderedDict[Slot, None] = OrderedDict()
        """Slow starts that keep their slots, since `slow_total` is reached."""
        self._later: asyncio.TimerHandle | None = None
        self._known_until: dict[str, float] = {}
        """Until when the slow starts of a tenant are remembered."""

    @property
    def usage(self) -> Usage:
        """As it is now; all zero when nothing is under way."""
        return Usage(
            waiting=sum(len(turns) for of in self._waiting.values() for turns in of.values()),
            with_slot=self._quick,
            slow=len(self._slow),
            shared=len(self._under_way) + len(self._of_tenants) + len(self._quick_of),
        )

    @contextlib.asynccontextmanager
    async def slot(
        self,
        doing: str,
        *shares: Share,
        tenant: str = "",
        timeout_s: float | None = None,
        waiting: str = "waiting for other starts",
    ) -> AsyncIterator[Slot]:
        """Hold a slot while the block runs. The last of `shares` is the pod's. `waiting` is the name of the wait's
        step.

        `tenant` is the tenant as messages name it (`namespace a`); if it is "", the pod is its own tenant.

        Raises DeadlineError if there was no slot within `timeout_s`, with the owner that has too many; and if the block
        is given up, after it has handled its cancellation.
        """
        owners = _Owners(tenant or shares[-1].owner, shares)
        turn = Slot(self, owners, asyncio.get_running_loop().create_future())
        of_tenant = self._waiting.setdefault(owners.tenant, OrderedDict())
        of_tenant.setdefault(owners, OrderedDict())[turn] = None
        self._serve()
        try:
            try:
                with step(waiting):
                    async with asyncio.timeout(timeout_s):
                        await turn.granted
            except TimeoutError:
                raise DeadlineError(
                    f"{doing} did not begin within {timeout_s:g} s: {self._in_the_way(turn)} are under way"
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
                    f"{doing} was given up after {time.monotonic() - turn.began_s:.0f} s: too many slow starts are "
                    f"under way, and {owners.tenant} has the most"
                ) from None
        finally:
            self.leave(turn)

    def _in_the_way(self, turn: Slot) -> str:
        for share in turn.owners.shares:
            if (others := self._under_way[share.owner]) >= share.most:
                return f"{others} others of {share.owner}"
        return f"{self._quick} others"

    def _serve(self) -> None:
        """Grant free slots."""
        while self._quick < self._total:
            # Not sorted once: each grant changes who may have a slot.
            owners = self._next()
            if owners is None:
                return
            turn = self._waiting[owners.tenant][owners].popitem(last=False)[0]
            # Round robin between tenants, and pods of a tenant, with equal numbers.
            self._waiting.move_to_end(owners.tenant)
            self._waiting[owners.tenant].move_to_end(owners)
            self._forget_empty(owners)
            if (
                not turn.granted.done()
            ):  # else the waiter was cancelled, and its task has not run since
                self._grant(turn)

    def _next(self) -> _Owners | None:
        """Whose turn it is. Looks at no more tenants than have something under way, and one; and so with pods.

        Only where shares of others than pods are used up, it looks at all who wait for them.
        """
        found: _Owners | None = None
        for tenant, waiting in self._waiting.items():
            fewest = None if found is None else self._of_tenants.get(found.tenant, 0)
            having = self._of_tenants.get(tenant, 0)
            if fewest is not None and having >= fewest:
                continue
            if (owners := self._next_of(tenant, waiting)) is not None:
                found = owners
                if having == 0:
                    break
        return found

    def _next_of(self, tenant: str, waiting: _WaitingOfTenant) -> _Owners | None:
        if self._is_suspect(tenant):
            if self._suspects_quick >= max(1, self._total // 2):
                return None
        elif self._quick_of.get(tenant, 0) >= self._of_tenant and next(iter(waiting)).pod != tenant:
            # A pod that is its own tenant is bounded by its share.
            return None
        found, fewest = None, 0
        for owners in waiting:
            having = self._under_way.get(owners.pod, 0)
            if (found is None or having < fewest) and not self._has_all_its_shares(owners):
                found, fewest = owners, having
                if having == 0:
                    break
        return found

    def _has_all_its_shares(self, owners: _Owners) -> bool:
        return any(self._under_way.get(share.owner, 0) >= share.most for share in owners.shares)

    def _forget_empty(self, owners: _Owners) -> None:
        of_tenant = self._waiting[owners.tenant]
        if not of_tenant[owners]:
            del of_tenant[owners]
        if not of_tenant:
            del self._waiting[owners.tenant]

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
        """Take slots from slow starts, the longest first, up to the bound of slow starts. Then grant free slots."""
        while self._stuck and len(self._slow) < self._slow_total:
            turn, _ = self._stuck.popitem(last=False)
            self._give_back(turn)
            self._slow[turn] = None
        if self._stuck:
            self._give_up_one()
        self._serve()

    def _give_up_one(self) -> None:
        """Give up one slow start, or set a timer for when one may be given up."""
        still = [turn for turn in self._slow if turn.limit is not None]
        if len(self._slow) - len(still) >= len(self._stuck) or not still:
            return  # enough were given up already, and will end
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
        """Return the slot, or leave the queue."""
        if not turn.granted.done() or turn.granted.cancelled():  # it never had a slot
            of_tenant = self._waiting.get(turn.owners.tenant)
            if of_tenant is not None and turn.owners in of_tenant:
                of_tenant[turn.owners].pop(turn, None)
                self._forget_empty(turn.owners)
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
    """Decrease a count, and delete it at 0, so that the counter does not grow with past owners."""
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
