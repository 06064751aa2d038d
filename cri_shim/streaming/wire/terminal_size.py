"""The sizes of a client's terminal, which arrive on the resize stream as consecutive JSON objects.

Rules: objects are bounded. An object that is not a size is skipped, and the next one counts again. The case of names
doesn't matter, as with Go's decoder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from cri_shim.streaming.wire.buffers import Buffer

MAX_OBJECT_BYTES = 1024
"""Clients send about 30 bytes."""
MAX_OBJECTS = 16
"""How many objects are looked at, from the end of a chunk."""
_MAX_CELLS = 0xFFFF


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """Columns and rows, as in the kernel's `winsize`."""

    width: int
    height: int


class TerminalSizeReader:
    """Parses the bytes of a resize stream."""

    def __init__(self) -> None:
        self._pending = b""

    @property
    def pending_bytes(self) -> int:
        """What is kept of an object that is not complete."""
        return len(self._pending)

    def receive_data(self, data: Buffer) -> TerminalSize | None:
        """The last size that these bytes complete. Earlier ones are outdated already."""
        *objects, rest = (self._pending + bytes(data)).rsplit(b"}", MAX_OBJECTS)
        self._pending = rest[-MAX_OBJECT_BYTES:]
        for text in reversed(objects):
            size = _parse(text + b"}")
            if size is not None:
                return size
        return None


def _parse(text: bytes) -> TerminalSize | None:
    if len(text) > MAX_OBJECT_BYTES:
        return None
    try:
        # JSON that ends with a brace is an object, so no check of the type is needed.
        document: dict[str, object] = json.loads(text)
    except (ValueError, RecursionError):
        return None
    fields = {name.lower(): value for name, value in document.items()}
    width, height = fields.get("width"), fields.get("height")
    if _is_cells(width) and _is_cells(height):
        return TerminalSize(width, height)
    return None


def _is_cells(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= _MAX_CELLS
