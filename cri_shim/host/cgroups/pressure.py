"""Reads pressure stall information of a cgroup: how long its tasks waited for CPU, memory or I/O.

Pressure exists in the v2 hierarchy alone (Documentation/accounting/psi.rst). Kernels before 5.13 lack the line `full`
of CPU, and kernels with `psi=0` refuse the read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cri_shim.host.cgroups.control_files import read_file

_LINE = re.compile(
    rb"^(some|full) avg10=([\d.]+) avg60=([\d.]+) avg300=([\d.]+) total=(\d+)$", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Stalls:
    """The time in which tasks stalled: percentages of the last 10, 60 and 300 seconds, and in total."""

    total_us: int
    avg10: float
    avg60: float
    avg300: float


@dataclass(frozen=True, slots=True)
class Pressure:
    """Pressure on one resource. `some`: at least one task stalled; `full`: all of them at once."""

    some: Stalls | None = None
    full: Stalls | None = None


def read_pressure(path: str) -> Pressure | None:
    """The pressure in the file; None if the node does not account it."""
    found = {}
    for kind, *averages, total in _LINE.findall(read_file(path) or b""):
        found[kind] = Stalls(int(total), *(float(average) for average in averages))
    return Pressure(found.get(b"some"), found.get(b"full")) if found else None
