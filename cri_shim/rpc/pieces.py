"""Long lists in pieces: the answers of CRI's Stream* calls, none of which comes near a message's bound.

Rules:
- A list is what was there when the call came; pieces only cut it. An empty list is a stream without any message.
- Entries are made as they are sent, so that a long list is never in memory as a whole, and other calls are answered
  between two pieces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from google.protobuf.message import Message

PIECE_BYTES: Final = 1 << 19
"""Of entries in one message, unless a single one is longer; `limits.grpc_message` is at least twice that."""
E = TypeVar("E", bound="Message")
M = TypeVar("M", bound="Message")


async def send_in_pieces(
    entries: Iterable[E], wrap: Callable[[list[E]], M], send: Callable[[M], Awaitable[None]]
) -> None:
    """Send all entries, in order, each message made by `wrap` from some of them."""
    piece: list[E] = []
    size = 0
    for entry in entries:
        entry_bytes = entry.ByteSize()
        if piece and size + entry_bytes > PIECE_BYTES:
            await send(wrap(piece))
            piece, size = [], 0
        piece.append(entry)
        size += entry_bytes
    if piece:
        await send(wrap(piece))
