"""What becomes of large blocks, and of many threads' arenas. In processes of their own: it changes those."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
from cri_shim.host.heap import unmap_large_blocks
assert unmap_large_blocks()

def held_kib():
    return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0])

del (first := [bytearray(4 << 20)])[:]
before = held_kib()
blocks, small = [], []
for _ in range(20):
    blocks.append(bytearray(b"x" * (4 << 20)))
    small.append(bytearray(100_000))
blocks.clear()
assert held_kib() - before < 8 << 10, held_kib() - before
"""


def test_large_blocks_go_back_to_the_kernel() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)


ARENAS_OF_MANY_THREADS = """
import ctypes, sys, threading
from cri_shim.host.heap import limit_arenas

if sys.argv[1] == "limited":
    assert limit_arenas(2)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
gate = threading.Barrier(9)

def allocate():
    libc.malloc(100_000)
    gate.wait()
    gate.wait()

for _ in range(8):
    threading.Thread(target=allocate).start()
gate.wait()
libc.malloc_stats()
gate.wait()
"""


def arenas(how: str) -> int:
    """How many a process with eight threads has, as malloc_stats(3) tells it."""
    done = subprocess.run(
        [sys.executable, "-c", ARENAS_OF_MANY_THREADS, how],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        # What limits the arenas from outside would hide what is done inside.
        env={name: value for name, value in os.environ.items() if "MALLOC" not in name},
    )
    return sum(line.startswith("Arena ") for line in done.stderr.splitlines())


def test_threads_share_the_arenas() -> None:
    assert arenas("free") > 2
    assert arenas("limited") == 2
