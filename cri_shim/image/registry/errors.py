"""What a registry's server did instead of answering, and what the caller of a pull is told once nobody is left to ask.

Rules: a `ServerFailure` never leaves the registry client; `verdict` makes the one error out of all of them, naming each
server that was asked and what it said. A server's words are untrusted, those in its status line too: every failure is
cut, and has no control characters.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

import msgspec

from cri_shim.errors import (
    UNREADABLE_DOCUMENT,
    BadArchiveError,
    CriShimError,
    NotFoundError,
    RegistryAuthError,
    RegistryUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_WORDS = 300
_MAX_FAILURE_CHARS = 700


class Fault(Enum):
    """What is wrong, and so what to do about it."""

    PASSING = auto()
    """Worth another try: no connection, a broken one, too many requests, a server's error."""
    MISSING = auto()
    """It hasn't got it."""
    REFUSED = auto()
    """It wants other credentials, or any."""
    DAMAGED = auto()
    """It sent something that is not what was asked for."""
    BROKEN = auto()
    """It can't be talked to, and won't in a minute either."""


_TELLS = (Fault.PASSING, Fault.BROKEN, Fault.MISSING, Fault.DAMAGED, Fault.REFUSED)
"""The more, the later."""


class ServerFailure(Exception):  # noqa: N818 - it is one server's, and not yet an error of the pull
    """One server's failure to answer one request."""

    def __init__(
        self,
        origin: str,
        fault: Fault,
        text: str,
        *,
        retry_after_s: float = 0.0,
        answered: bool = True,
    ) -> None:
        super().__init__(f"{origin}: {_clean(text, _MAX_FAILURE_CHARS)}")
        self.fault = fault
        self.answered = answered
        """Whether it was the server that said so; else it could not be reached, or fell silent."""
        self.retry_after_s = retry_after_s
        self.progressed = False
        """Whether bytes came before it happened: then the tries are counted anew."""


def verdict(doing: str, kind: str, key: str, failures: Sequence[ServerFailure]) -> CriShimError:
    """The error for what nobody could give; the last failure, the registry's own, decides which.

    A registry that said nothing leaves that to its mirrors: then what tells the most of what they said decides.
    `doing` names image and step; `kind` and `key` name what is missing if it is.
    """
    said = "; ".join(map(str, failures))
    decisive = failures[-1]
    if not decisive.answered:
        decisive = max(failures, key=lambda each: (each.answered, _TELLS.index(each.fault)))
    match decisive.fault:
        case Fault.MISSING:
            return NotFoundError(kind, key, f"{doing}: {said}")
        case Fault.REFUSED:
            return RegistryAuthError(f"{doing}: {said}")
        case Fault.DAMAGED:
            return BadArchiveError(f"{doing}: {said}")
        case _:
            return RegistryUnavailableError(f"{doing}: {said}")


class _ErrorEntry(msgspec.Struct, frozen=True):
    code: str | None = None
    message: str | None = None


class _ErrorBody(msgspec.Struct, frozen=True):
    errors: list[_ErrorEntry] | None = None
    details: str | None = None
    """What token servers write."""


def registry_words(body: bytes) -> str:
    """What the body of an error answer says, for a message; empty when it says nothing (distribution spec, errors)."""
    try:
        found = msgspec.json.decode(body, type=_ErrorBody)
    except UNREADABLE_DOCUMENT:
        return ""
    words = "; ".join(entry.message or entry.code or "" for entry in found.errors or ())
    words = words or found.details or ""
    return _clean(words, _MAX_WORDS)


def _clean(text: str, max_chars: int) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:max_chars]).strip()
