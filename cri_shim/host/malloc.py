"""What glibc's malloc keeps for the threads of this process.

By default each thread may get an arena of its own, up to eight for every processor, and what was freed in one stays
there. The daemon's threads are many and idle: they share two.
"""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8
"""<malloc.h>"""


def limit_arenas(most: int) -> bool:
    """Have all threads share `most` arenas; to be called before there are threads. False where libc is not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(_M_ARENA_MAX, most))
