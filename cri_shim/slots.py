"""Work that all pods share, starts above all: so many at a time, of which no pod can keep another from its part.

Rules:
- A slot is for the time in which a start costs the node something. One that takes longer than `slow_after_s` mostly
  waits, and for what its pod chose (a FIFO, a file system that never answers): it becomes one of the slow ones, whose
  number is bounded as well, and its slot is another's.
- What counts against a pod's share is both, until the start has ended. So a pod that makes its starts hang has in the
  end none left, and every other pod all of its own.
- Who has least under way comes first, and of those who waits longest. A pod whose starts were slow of late shares half
  of the slots with its like: it can't take all of them again in the moment before that shows.
- Where there are too many slow ones, the further ones keep their slots; then a slow one of the pod that has most is
  given up, unless it is younger than `PATIENCE_S`: on a busy node honest starts are slow, too.

Where the work is not a pod's but an image's, read image for pod.
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
"""How long a pod is known for a slow start."""


class Share(NamedTuple):
    """The most that one owner may have under way at a time, the slow ones among them."""

    owner: str
    """`pod 1a2b…`: how a message names it."""
    most: int


class _Turn:
    """One start: waiting, with a slot, or slow."""

    __slots__ = ("began_s", "granted", "limit", "quick", "shares", "suspect", "timer")

    def __init__(self, shares: tuple[Share, ...], granted: asyncio.Future[None]) -> None:
        self.shares = shares
        self.granted = granted
        self.quick = False
        self.suspect = False
        self.began_s = 0.0
        self.timer: asyncio.TimerHandle | None = None
        self.limit: asyncio.Timeout | None = None
        """While it is under way; none once it was given up."""

    @property
    def pod(self) -> str:
        return self.shares[-1].owner


class Slots:
    """`total` starts at a time, and at most `slow_total` slow ones beside them; on the loop's thread only."""

    def __init__(
        self,
        total: int,
        *,
        slow_total: int | None = None,
        slow_after_s: float = SLOW_AFTER_S,
        patience_s: float | None = None,
    ) -> None:
        """`patience_s` stands for `PATIENCE_S` where the work is longer than a start."""
        self._total = total
        self._slow_total = 2 * total if slow_total is None else slow_total
        self._slow_after_s = slow_after_s
        self._patience_s = PATIENCE_S if patience_s is None else patience_s
        self._waiting: OrderedDict[tuple[Share, ...], OrderedDict[_Turn, None]] = OrderedDict()
        self._under_way: Counter[str] = Counter()
        """By owner, with a slot or slow."""
        self._quick = 0
        self._suspects_quick = 0
        self._slow: OrderedDict[_Turn, None] = OrderedDict()
        self._stuck: OrderedDict[_Turn, None] = OrderedDict()
        """Slow with a slot: there are too many slow ones already."""
        self._later: asyncio.TimerHandle | None = None
        self._known_until: dict[str, float] = {}
        """Pods whose starts were slow of late."""

    @contextlib.asynccontextmanager
    async def slot(
        self,
        doing: str,
        *shares: Share,
        timeout_s: float | None = None,
        waiting: str = "waiting for other starts",
    ) -> AsyncIterator[None]:
        """A slot for as long as the block runs; of the shares, the last is the pod's. `waiting` is the step's name.

        Raises DeadlineError, which says of whom too many are under way, after `timeout_s` without one; and when the
        block is given up, whose own undoing of a cancellation comes first.
        """
        turn = _Turn(shares, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(shares, OrderedDict())[turn] = None
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
                    yield
            except TimeoutError:
                if not limit.expired():
                    raise
                raise DeadlineError(
                    f"{doing} was given up after {time.monotonic() - turn.began_s:.0f} s: too many that are as "
                    f"slow are under way, and of {turn.pod} most"
                ) from None
        finally:
            self._leave(turn)

    def _in_the_way(self, turn: _Turn) -> str:
        for share in turn.shares:
            if (others := self._under_way[share.owner]) >= share.most:
                return f"{others} others of {share.owner}"
        return f"{self._quick} others"

    def _serve(self) -> None:
        """Give out what is free."""
        while self._quick < self._total:
            # Not by a sort: what may go on changes with every slot that is given.
            shares = min(filter(self._may_have_one, self._waiting), key=self._having, default=None)
            if shares is None:
                return
            turns = self._waiting[shares]
            turn, _ = turns.popitem(last=False)
            # Those of the same owner that wait come after all others.
            self._waiting.move_to_end(shares)
            if not turns:
                del self._waiting[shares]
            if not turn.granted.done():  # it has gone away, and its task doesn't know yet
                self._grant(turn)

    def _may_have_one(self, shares: tuple[Share, ...]) -> bool:
        if any(self._under_way[share.owner] >= share.most for share in shares):
            return False
        return self._suspects_quick < max(1, self._total // 2) or not self._is_suspect(shares)

    def _having(self, shares: tuple[Share, ...]) -> int:
        return self._under_way[shares[-1].owner]

    def _is_suspect(self, shares: tuple[Share, ...]) -> bool:
        return self._known_until.get(shares[-1].owner, 0.0) > time.monotonic()

    def _grant(self, turn: _Turn) -> None:
        for share in turn.shares:
            self._under_way[share.owner] += 1
        self._quick += 1
        turn.quick = True
        turn.began_s = time.monotonic()
        if self._is_suspect(turn.shares):
            self._suspect(turn)
        loop = asyncio.get_running_loop()
        turn.timer = loop.call_later(self._slow_after_s, self._is_slow, turn)
        turn.granted.set_result(None)

    def _suspect(self, turn: _Turn) -> None:
        if not turn.suspect:
            turn.suspect = True
            self._suspects_quick += 1

    def _is_slow(self, turn: _Turn) -> None:
        now = time.monotonic()
        self._known_until = {pod: until for pod, until in self._known_until.items() if until > now}
        self._known_until[turn.pod] = now + REMEMBERED_S
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
        of_pod = Counter(turn.pod for turn in still)
        turn = max(still, key=lambda each: of_pod[each.pod])  # the oldest of them
        left_s = turn.began_s + self._patience_s - time.monotonic()
        if left_s > 0:
            self._later = self._later or loop.call_later(left_s, self._come_again)
        elif turn.limit is not None:
            turn.limit.reschedule(loop.time())
            turn.limit = None

    def _come_again(self) -> None:
        self._later = None
        self._settle()

    def _give_back(self, turn: _Turn) -> None:
        turn.quick = False
        self._quick -= 1
        self._suspects_quick -= turn.suspect

    def _leave(self, turn: _Turn) -> None:
        if turn.timer is None:  # it never had one
            turns = self._waiting.get(turn.shares, OrderedDict())
            turns.pop(turn, None)
            if not turns:
                self._waiting.pop(turn.shares, None)
            return
        turn.timer.cancel()
        self._stuck.pop(turn, None)
        if turn.quick:
            self._give_back(turn)
        else:
            del self._slow[turn]
        for share in turn.shares:
            self._under_way[share.owner] -= 1
            if not self._under_way[share.owner]:
                del self._under_way[share.owner]
        self._settle()
