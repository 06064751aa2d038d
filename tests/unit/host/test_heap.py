"""Large blocks, the arenas of many threads, large pages. In processes of their own: it changes those."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


LARGE_PAGES = """
import ctypes, mmap, re
from cri_shim.host.heap import gather_in_large_pages

def of_this_process(field):
    return int(re.search(field + r": +(\\d+)", open("/proc/self/smaps_rollup").read())[1])

full, sparse = mmap.mmap(-1, 16 << 20, mmap.MAP_PRIVATE), mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE)
full.write(bytes(range(256)) * (16 << 12))
sparse[0] = sparse[-1] = 7
before = of_this_process("Rss")
gathered = gather_in_large_pages()
large_kib, more_kib = of_this_process("AnonHugePages"), of_this_process("Rss") - before
assert full[:] == bytes(range(256)) * (16 << 12)
assert (sparse[0], sparse[1], sparse[-1]) == (7, 0, 7)
assert large_kib >= gathered * 2048, (large_kib, gathered)
assert more_kib < 16 << 10, more_kib
print(gathered)
"""


def test_what_is_there_is_gathered_in_large_pages_and_what_is_not_stays_away() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LARGE_PAGES], capture_output=True, text=True, check=True
    )
    collapses = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 1)
    switch = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if collapses and switch.exists() and "[never]" not in switch.read_text():
        assert int(done.stdout) >= 6
