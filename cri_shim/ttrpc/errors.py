"""How a ttrpc call fails: the other side says so, or it can't be reached."""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """gRPC's codes, as far as one side or the other uses them."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class CallError(Exception):
    """The other side's refusal."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class ConnectionLostError(Exception):
    """There is no connection (any more): whether the call took effect is unknown."""
