"""Splits long lists into the messages of CRI's Stream* calls, each well below `limits.grpc_message`.

Rules:
- The list is a snapshot from the time of the call. An empty list is a stream without messages.
- Entries are encoded as they are sent, so that a long list is never in memory as a whole, and the loop serves other
  calls between two messages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cri_shim.rpc.encoded import Encoded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    Send = Callable[[Encoded], Awaitable[None]]

PIECE_BYTES: Final = 1 << 19
"""Bytes of entries in one message; a longer entry is sent alone. `limits.grpc_message` is at least twice that."""


async def send_in_pieces(entries: Iterable[bytes], send: Send) -> None:
    """Send all entries in order. Each is an encoded response with one entry; joined they form one (`encoded`)."""
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
