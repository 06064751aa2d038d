"""A short campaign of random deaths in each run; the long one, of 200, when asked for (`-m slow`).

CRI_SHIM_FAULT_KILLS says how many deaths the long one has, CRI_SHIM_FAULT_SEED where its choices start from.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.faults import campaign

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.daemon import Daemon

SHORT_KILLS = 5
LONG_KILLS = 200
CLIENTS = 4


def run(daemon: Daemon, directory: Path, kills: int, seed: int) -> None:
    ledger = campaign.run(daemon, directory, kills=kills, clients=CLIENTS, seed=seed)
    campaign.report(ledger)
    # What was kept is checked by now; the process that unpacks would stay for a minute, and is no leak.
    daemon.restart()
    assert not ledger.violations, "\n".join(ledger.violations)
    assert ledger.calls.total() > 10 * kills, "the clients did next to nothing"
    assert ledger.calls["PullImage"] > kills, "the clients pulled next to nothing"


def test_nothing_is_lost_or_left_over_random_deaths(
    crash_daemon: Daemon, tmp_path: Path, seed: int
) -> None:
    run(crash_daemon, tmp_path, SHORT_KILLS, seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nothing_is_lost_or_left_over_many_random_deaths(
    crash_daemon: Daemon, tmp_path: Path, seed: int
) -> None:
    run(crash_daemon, tmp_path, int(os.environ.get("CRI_SHIM_FAULT_KILLS") or LONG_KILLS), seed)
