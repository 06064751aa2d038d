"""What a campaign's daemon has promised, and what it broke."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator


class ViolationError(Exception):
    """The daemon broke a promise."""


class Acknowledged(NamedTuple):
    """What must be there at one moment."""

    pods: set[str]
    running: set[str]
    images: set[tuple[str, str]]


@dataclass
class Ledger:
    """What was acknowledged and not yet asked to go; threads write it, the checker reads it."""

    pods: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    """Containers that were started and do not end by themselves."""
    images: set[tuple[str, str]] = field(default_factory=set)
    """Reference and ID of images that were pulled."""
    deaths: int = 0
    steps: Counter[str] = field(default_factory=Counter)
    """How often at which step of a creation."""
    pulls_found_whole: int = 0
    """Pulls without an answer whose image was there."""
    violations: list[str] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    interrupted: Counter[str] = field(default_factory=Counter)
    cut_off: Counter[str] = field(default_factory=Counter)
    """Of the interrupted ones, those that a daemon had accepted, or was about to."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def violated(self, what: str) -> None:
        """Note a broken promise."""
        with self._lock:
            self.violations.append(what)

    def snapshot(self) -> Acknowledged:
        """What is known now."""
        with self._lock:
            return Acknowledged(set(self.pods), set(self.running), set(self.images))

    @contextlib.contextmanager
    def changed(self) -> Iterator[None]:
        """Change the sets inside."""
        with self._lock:
            yield

    def count(self, call: str, *, interrupted: bool = False, cut_off: bool = False) -> None:
        """One call ended."""
        with self._lock:
            self.cut_off[call] += cut_off
            (self.interrupted if interrupted else self.calls)[call] += 1
