"""Failures of a registry's servers, and the one error that a caller gets when every server has failed.

Rules: a `ServerFailure` never leaves the registry client. `verdict` turns all of them into one error that names each
server and its answer. A server's text is untrusted, its status line too: every failure is cut, without control
characters.
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
    """The kind of a failure, which decides what happens next."""

    PASSING = auto()
    """Try again: no connection, a broken one, too many requests, or a server error."""
    MISSING = auto()
    """The server does not have the object."""
    REFUSED = auto()
    """The server wants other credentials, or any."""
    DAMAGED = auto()
    """The server sent something else than was requested."""
    BROKEN = auto()
    """The server can't be used, and waiting won't help."""


_TELLS = (Fault.PASSING, Fault.BROKEN, Fault.MISSING, Fault.DAMAGED, Fault.REFUSED)
"""From the least to the most informative."""


class ServerFailure(Exception):  # noqa: N818 - one server's, and not yet an error of the pull
    """The failure of one server to answer one request."""

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
        """Whether the server answered; False if it could not be reached or went silent."""
        self.retry_after_s = retry_after_s
        self.progressed = False
        """Whether bytes arrived before the failure: then the count of attempts starts again."""


def verdict(doing: str, kind: str, key: str, failures: Sequence[ServerFailure]) -> CriShimError:
    """The error of a request that every server failed. The last failure, the registry's own, decides its kind.

    If the registry itself did not answer, the most informative failure of its mirrors decides.
    `doing` names image and step; `kind` and `key` name the object, in case it is missing.
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
    """The form of token servers' errors."""


def registry_words(body: bytes) -> str:
    """The message in the body of an error response; empty if there is none (distribution-spec, "Error Codes")."""
    try:
        found = msgspec.json.decode(body, type=_ErrorBody)
    except UNREADABLE_DOCUMENT:
        return ""
    words = "; ".join(entry.message or entry.code or "" for entry in found.errors or ())
    words = words or found.details or ""
    return _clean(words, _MAX_WORDS)


def _clean(text: str, max_chars: int) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:max_chars]).strip()
