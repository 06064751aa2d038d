"""What a process gives up, in one that is there for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cri_shim.config.values import CAPABILITIES
from cri_shim.host import confine

_PROGRAM = """
import sys
from cri_shim.host import confine
own = "/proc/self/oom_score_adj"
with open(own, "w") as file:
    file.write(sys.argv[1])
confine.raise_oom_score_adj(int(sys.argv[2]))
print(open(own).read().strip())
"""


@pytest.mark.parametrize(("own", "at_least", "after"), [(700, 800, 800), (900, 800, 900)])
def test_oom_score_adj_is_raised_and_never_lowered(own: int, at_least: int, after: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(own), str(at_least)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == after


def test_memory_beyond_the_bound_is_an_error() -> None:
    program = (
        "from cri_shim.host import confine\n"
        "confine.limit_data(256 << 20)\n"
        "kept = bytes(64 << 20)\n"
        "try:\n"
        "    bytearray(512 << 20)\n"
        "except MemoryError:\n"
        "    print('bounded')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "bounded\n"


def test_capabilities_have_the_kernels_numbers() -> None:
    for capability in confine.Capability:
        assert CAPABILITIES.index(capability.name.removeprefix("CAP_")) == capability
