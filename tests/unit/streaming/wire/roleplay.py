"""Two ends without a socket between them, and what makes their events comparable."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cri_shim.streaming.wire.buffers import Buffer


class End(Protocol):
    """One end of a connection."""

    @property
    def has_more(self) -> bool: ...
    def receive_data(self, data: Buffer) -> Sequence[Any]: ...
    def data_to_send(self) -> list[Buffer]: ...


def sent(end: End) -> bytes:
    """What this end has to say, as it would be on the wire."""
    return b"".join(end.data_to_send())


def heard(receiver: End, data: Buffer) -> list[Any]:
    """What it makes of these bytes, in as many turns as that takes."""
    events = list(receiver.receive_data(data))
    while receiver.has_more:
        events += receiver.receive_data(b"")
    return events


def deliver(sender: End, receiver: End) -> list[Any]:
    """What the receiver makes of it."""
    return merged(heard(receiver, sent(sender)))


def merged(events: Sequence[Any]) -> list[Any]:
    """Events with their bytes in one piece: how they were cut on the way means nothing."""
    whole: list[Any] = []
    for event in events:
        if not hasattr(event, "data"):
            whole.append(event)
        elif whole and _continues(whole[-1], event):
            before = whole.pop()
            whole.append(_joined(before, event))
        else:
            whole.append(replace(event, data=bytes(event.data)))
    return whole


def _continues(before: Any, event: Any) -> bool:
    if type(before) is not type(event):
        return False
    if hasattr(event, "begins"):
        return not event.begins and not before.ends
    return bool(replace(before, data=b"") == replace(event, data=b""))


def _joined(before: Any, event: Any) -> Any:
    data = before.data + bytes(event.data)
    if hasattr(event, "begins"):
        return replace(event, data=data, begins=before.begins)
    return replace(event, data=data)


def whole_messages(events: Sequence[Any]) -> list[Any]:
    """WebSocket events without the message that an error cut short: of that, as much was given out as had come."""
    if not events or not getattr(events[-1], "error", None):
        return list(events)
    kept: list[Any] = []
    is_cut = True
    for event in reversed(events):
        if hasattr(event, "ends"):
            is_cut = is_cut and not event.ends
            if is_cut:
                continue
        kept.append(event)
    return kept[::-1]


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """The bytes in pieces."""
    marks = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(marks)]


def in_pieces(receiver: End, data: bytes, places: Sequence[int]) -> list[Any]:
    """What the receiver makes of the bytes when they come cut at these places."""
    return merged([e for piece in cut(data, places) for e in receiver.receive_data(piece)])


def byte_by_byte(receiver: End, data: bytes) -> list[Any]:
    """What the receiver makes of the bytes one at a time."""
    return in_pieces(receiver, data, range(len(data)))


class RandomKeys:
    """Mask keys that are the same in each run, and never the same twice."""

    def __init__(self) -> None:
        self._n = 0

    def __call__(self) -> bytes:
        self._n += 0x9E3779B1
        return (self._n & 0xFFFFFFFF).to_bytes(4, "big")
