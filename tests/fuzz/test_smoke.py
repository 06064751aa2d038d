"""Every target for a moment: its seeds, and then the same few thousand inputs each time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.run import targets

pytestmark = pytest.mark.fuzz

RUNS = 4000
SECONDS = 3
"""A bound for slow machines; a quick one gets through all runs in less."""


@pytest.mark.parametrize("target", targets())
def test_no_input_breaks(target: str, tmp_path: Path) -> None:
    ran = subprocess.run(
        [
            *(sys.executable, str(Path(__file__).parent / "run.py"), target),
            *("--runs", str(RUNS), "--seconds", str(SECONDS), "--seed", "1"),
            *("--place", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONHASHSEED": "0"},
    )
    said = f"{ran.stdout[-6000:]}\n{ran.stderr[-3000:]}"
    assert ran.returncode == 0, said
    assert "number_of_executed_units" in ran.stderr, said
