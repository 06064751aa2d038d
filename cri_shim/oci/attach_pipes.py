"""The pipes of one attach session: the daemon creates them, the streaming process uses them."""

from __future__ import annotations

import os
from dataclasses import dataclass

MEMBER_BYTES = 1 << 20
"""The capacity of a session's pipe, and so how far a session may fall behind."""


@dataclass(frozen=True, slots=True)
class Pipes:
    """The read and the write end of each stream that a new attach session wants. All are non-blocking."""

    stdin: tuple[int, int] | None = None
    stdout: tuple[int, int] | None = None
    stderr: tuple[int, int] | None = None

    def close(self) -> None:
        """Close every end."""
        for pipe in (self.stdin, self.stdout, self.stderr):
            for fd in pipe or ():
                os.close(fd)
