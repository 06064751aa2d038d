"""Tunes malloc of the C library, and the page size of the heap.

Rules:
- Large blocks (an image's document, for instance) are mapped on their own, and returned to the kernel when they are
  freed. By default glibc raises its mmap threshold after the first such free, and then places large blocks in the
  heap, where small live blocks keep the freed space from the kernel.
- Threads share few arenas. By default glibc makes up to eight arenas per processor, and memory freed in one is not
  usable in another.
- Both settings hold for the rest of the process. musl has neither setting, and needs neither.
- After a sleep of some milliseconds the daemon finds its heap neither in the caches nor in the TLB. So the permanent
  part of the heap is collapsed into huge pages once, which saves a sixth of the CPU time of each call.
"""

from __future__ import annotations

import ctypes
import re

from cri_shim.host import syscalls

# <malloc.h>
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_LARGE_BYTES = 256 << 10
_LARGE_PAGE_BYTES = 2 << 20
_MAPPING = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) rw-p 00000000 00:00 0 *(?:\[heap\])?$", re.MULTILINE
)
"""A private anonymous mapping in /proc/self/maps (proc(5)): its start and end."""


def unmap_large_blocks() -> bool:
    """Fix the mmap threshold at 256 KiB from now on. Returns False if the C library has no such setting."""
    return _mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def limit_arenas(most: int) -> bool:
    """Limit malloc to `most` arenas. Call it before threads start. Returns False as `unmap_large_blocks` does."""
    return _mallopt(_M_ARENA_MAX, most)


def _mallopt(parameter: int, value: int) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(parameter, value) == 1


def gather_in_large_pages() -> int:
    """Collapse the present heap into pages of 2 MiB (MADV_COLLAPSE). Returns the number of such pages.

    Blocks for some milliseconds. Returns 0 before Linux 6.1, or if transparent huge pages are disabled.
    """
    with open("/proc/self/maps", "rb") as file:
        mappings = _MAPPING.findall(file.read())
    gathered = 0
    for first, last in mappings:
        start, end = int(first, 16), int(last, 16)
        start += -start % _LARGE_PAGE_BYTES
        for address in range(start, end - _LARGE_PAGE_BYTES + 1, _LARGE_PAGE_BYTES):
            try:
                there = syscalls.mincore(address, _LARGE_PAGE_BYTES)
                if there.count(0) > len(there) // 4:
                    continue  # mostly untouched, e.g. a thread's stack: collapsing would make all of it resident
                syscalls.madvise(address, _LARGE_PAGE_BYTES, syscalls.MADV_COLLAPSE)
            except (
                OSError
            ):  # the kernel lacks MADV_COLLAPSE, or cannot collapse this range: it stays as it was
                continue
            gathered += 1
    return gathered
