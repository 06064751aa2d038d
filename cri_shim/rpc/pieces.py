"""Long lists in pieces: the answers of CRI's Stream* calls, none of which comes near a message's bound.

Rules:
- A list is what was there when the call came; pieces only cut it. An empty list is a stream without any message.
- Entries are made as they are sent, so that a long list is never in memory as a whole, and other calls are answered
  between two pieces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cri_shim.rpc.encoded import Encoded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    Send = Callable[[Encoded], Awaitable[None]]

PIECE_BYTES: Final = 1 << 19
"""Of entries in one message, unless a single one is longer; `limits.grpc_message` is at least twice that."""


async def send_in_pieces(entries: Iterable[bytes], send: Send) -> None:
    """Send all entries, in order, several in a message; each is the encoding of a message with this entry alone."""
    piece: list[bytes] = []
    size = 0
    for entry in entries:
        if piece and size + len(entry) > PIECE_BYTES:
            await send(Encoded(b"".join(piece)))
            piece, size = [], 0
        piece.append(entry)
        size += len(entry)
    if piece:
        await send(Encoded(b"".join(piece)))
