"""The pipes of one who is attached to a container: the daemon makes them, the streaming process uses them."""

from __future__ import annotations

import os
from dataclasses import dataclass

MEMBER_BYTES = 1 << 20
"""How far a member may be behind: what its pipe holds."""


@dataclass(frozen=True, slots=True)
class Pipes:
    """For a new member: the reading and the writing end of each stream it wants, none of which blocks."""

    stdin: tuple[int, int] | None = None
    stdout: tuple[int, int] | None = None
    stderr: tuple[int, int] | None = None

    def close(self) -> None:
        """All of them."""
        for pipe in (self.stdin, self.stdout, self.stderr):
            for fd in pipe or ():
                os.close(fd)
