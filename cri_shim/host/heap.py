"""How the C library keeps memory and gives it back, and in which pages the kernel keeps it.

Rules:
- Large blocks, a document of an image for instance, are mapped each on its own and unmapped when they are free. The C
  library would begin to put them into the heap after the first one was freed, where small ones that stay keep the holes
  between them from the kernel.
- Threads share arenas. The C library would give each one of its own, up to eight for every processor, and what was
  freed in one stays there.
- Both hold for the process, from then on. musl has no such settings and needs none.
- A daemon that slept for some milliseconds finds its heap in no cache, and neither where each page of it is. So what is
  there for good is gathered in large pages once: each call then takes a sixth less processor time.
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
"""Private memory without a file, in proc(5)'s maps: its first and last address."""


def unmap_large_blocks() -> bool:
    """From now on. False where the C library has no such setting."""
    return _mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def limit_arenas(most: int) -> bool:
    """Have all threads share `most` arenas; to be called before there are threads. False as above."""
    return _mallopt(_M_ARENA_MAX, most)


def _mallopt(parameter: int, value: int) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(parameter, value) == 1


def gather_in_large_pages() -> int:
    """Have the kernel keep what is allocated now in pages of 2 MiB; how many it did.

    Blocking, some milliseconds. 0 where it can't: before Linux 6.1, or where such pages are switched off.
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
                    continue  # a thread's stack, say: all of it would be there after that
                syscalls.madvise(address, _LARGE_PAGE_BYTES, syscalls.MADV_COLLAPSE)
            except OSError:  # not of this kernel, or not this page: it stays as it was
                continue
            gathered += 1
    return gathered
