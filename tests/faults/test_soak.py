"""Everyday life leaves the daemon as it was: seconds of it in each run, ten minutes when asked for (`-m slow`).

CRI_SHIM_FAULT_MINUTES says how long the long one is.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.faults.soak import Soak

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.daemon import Daemon

SOME_S = 5.0
MANY_MINUTES = 10.0


def run(daemon: Daemon, directory: Path, seed: int, seconds: float) -> Soak:
    soak = Soak(daemon, directory, seed=seed)
    soak.run(seconds)
    # The process that unpacks would stay for a minute.
    daemon.restart()
    assert not soak.ledger.violations, "\n".join(soak.ledger.violations)
    soak.tell()
    return soak


def test_everyday_life_goes_on_without_an_error(
    crash_daemon: Daemon, tmp_path: Path, seed: int
) -> None:
    soak = run(crash_daemon, tmp_path, seed, SOME_S)
    assert soak.ledger.calls["probe"] > SOME_S
    assert max(sample.tasks for sample in soak.samples) > 0, "tasks are not counted"


@pytest.mark.slow
@pytest.mark.timeout(5 * 3600)
def test_everyday_life_leaves_nothing_behind(
    crash_daemon: Daemon, tmp_path: Path, seed: int
) -> None:
    minutes = float(os.environ.get("CRI_SHIM_FAULT_MINUTES") or MANY_MINUTES)
    assert run(crash_daemon, tmp_path, seed, minutes * 60).grown() == []
