"""Large blocks go back to the kernel, also between small ones that stay. In a process of its own: it changes that."""

from __future__ import annotations

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
