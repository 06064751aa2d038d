"""How the C library keeps memory and gives it back.

Rules:
- Large blocks, a document of an image for instance, are mapped each on its own and unmapped when they are free. The C
  library would begin to put them into the heap after the first one was freed, where small ones that stay keep the holes
  between them from the kernel.
- Threads share arenas. The C library would give each one of its own, up to eight for every processor, and what was
  freed in one stays there.
- Both hold for the process, from then on. musl has no such settings and needs none.
"""

from __future__ import annotations

import ctypes

# <malloc.h>
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_LARGE_BYTES = 256 << 10


def unmap_large_blocks() -> bool:
    """From now on. False where the C library has no such setting."""
    return _mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def limit_arenas(most: int) -> bool:
    """Have all threads share `most` arenas; to be called before there are threads. False as above."""
    return _mallopt(_M_ARENA_MAX, most)


def _mallopt(parameter: int, value: int) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(parameter, value) == 1
