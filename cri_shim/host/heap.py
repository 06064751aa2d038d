"""How the C library gives memory back.

Rules: large blocks, a document of an image for instance, are mapped each on its own and unmapped when they are free.
The C library would begin to put them into the heap after the first one was freed, where small ones that stay keep the
holes between them from the kernel.
"""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3
_LARGE_BYTES = 256 << 10


def unmap_large_blocks() -> bool:
    """From now on, in this process. False where the C library has no such setting (musl: it needs none)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES) == 1
