"""systemd, asked and told by its own command."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

CGROUP_DIR = Path("/sys/fs/cgroup")
CGROUP_CONTROLLERS = CGROUP_DIR / "cgroup.controllers"
_TIMEOUT_S = 300


def systemctl(*arguments: str, check: bool = True) -> str:
    """Run it; its output. Raises: AssertionError with its words when it fails."""
    done = subprocess.run(
        ["systemctl", *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    if check and done.returncode != 0:
        raise AssertionError(f"systemctl {' '.join(arguments)}: {done.stderr}{done.stdout}")
    return done.stdout


def units(*patterns: str) -> list[str]:
    """The names of the units in memory that match, whatever their state."""
    listed = systemctl("list-units", "--all", "--plain", "--no-legend", "--full", *patterns)
    return [line.split()[0] for line in listed.splitlines()]


def new_units(before: set[str], *patterns: str, settle_s: float) -> list[str]:
    """Units that came since and are still there after `settle_s` seconds: systemd collects them a moment late."""
    deadline = time.monotonic() + settle_s
    while True:
        left = sorted(set(units(*patterns)) - before)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def show(unit: str, *properties: str) -> dict[str, str]:
    """Properties of a unit, as systemd writes them."""
    lines = systemctl("show", unit, *(f"--property={name}" for name in properties)).splitlines()
    return dict(line.split("=", 1) for line in lines)


def stop(unit: str) -> None:
    """Stop a unit; no harm when it is none."""
    systemctl("stop", unit, check=False)


def slice_directory(name: str) -> str:
    """Where a slice's cgroup is, by systemd.slice(5): `a-b.slice` lies in `a.slice`."""
    parts = name.removesuffix(".slice").split("-")
    return "/".join(f"{'-'.join(parts[: end + 1])}.slice" for end in range(len(parts)))
