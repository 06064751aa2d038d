"""A daemon that ends, stops or fails at a named step of a creation.

    python -m tests.harness.failpoint_daemon --at "sandbox netns 1 kill" serve --config FILE

KIND STEP NTH ACTION: at the NTH time that a rollback of KIND (sandbox, container) notes STEP (`commit` included, `*`
for any step), the daemon does ACTION: `kill` (SIGKILL, as a crash), `stop` (SIGSTOP, so that a test can look or kill
children), `raise` (an error of our own), `bug` (an error that nobody expects). A step is noted before its effect: to
fail after the effect, name the next step. With --record FILE each step reached becomes a line `KIND STEP` in FILE.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.__main__ import main
from cri_shim.errors import UnavailableError
from cri_shim.rollback import Rollback

if TYPE_CHECKING:
    from collections.abc import Sequence

ANY_STEP = "*"
ACTIONS = ("kill", "stop", "raise", "bug")


@dataclass(frozen=True, slots=True)
class Failpoint:
    """Where, and what happens there."""

    kind: str
    step: str
    nth: int
    action: str

    @classmethod
    def parse(cls, text: str) -> Failpoint:
        """Read `KIND STEP NTH ACTION`. Raises: ValueError."""
        words = text.split()
        if len(words) != 4 or not words[2].isdigit() or words[3] not in ACTIONS:
            raise ValueError(
                f"failpoint {text!r}: KIND STEP NTH ACTION, action one of {', '.join(ACTIONS)}"
            )
        return cls(words[0], words[1], int(words[2]), words[3])


class Observer:
    """Counts the steps that rollbacks note, and acts at the chosen one."""

    def __init__(self, failpoint: Failpoint | None, record: Path | None) -> None:
        self._failpoint = failpoint
        self._record = record
        self._seen: Counter[str] = Counter()

    def __call__(self, what: str, step: str) -> None:
        """Note one step; see `Rollback.observer`."""
        kind = what.split()[0]
        if self._record is not None:
            with self._record.open("a") as file:
                file.write(f"{kind} {step}\n")
        point = self._failpoint
        if point is None or kind != point.kind or point.step not in (step, ANY_STEP):
            return
        self._seen[kind] += 1
        if self._seen[kind] == point.nth:
            self._act(point, f"failpoint: {what}, step {step}")

    def _act(self, point: Failpoint, where: str) -> None:
        os.write(2, f"{where}: {point.action}\n".encode())
        if point.action == "raise":
            raise UnavailableError(where)
        if point.action == "bug":
            raise ZeroDivisionError(where)
        os.kill(os.getpid(), signal.SIGKILL if point.action == "kill" else signal.SIGSTOP)


def run(arguments: Sequence[str]) -> int:
    """Arm what the leading options ask for, then be `cri-shim` with the rest."""
    failpoint, record = None, None
    rest = list(arguments)
    while rest and rest[0] in ("--at", "--record"):
        option, value, *rest = rest
        if option == "--at":
            failpoint = Failpoint.parse(value)
        else:
            record = Path(value)
    Rollback.observer = staticmethod(Observer(failpoint, record))
    return main(rest)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
