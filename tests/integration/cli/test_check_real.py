"""`check` on the machine itself: what it says must be true, and it must leave nothing behind."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from cri_shim.cli.check import collect
from cri_shim.cli.checks.kernel import overlayfs
from cri_shim.cli.checks.row import Level
from cri_shim.config import load_config

pytestmark = pytest.mark.integration


def test_this_machine_can_run_the_daemon(tmp_path: Path) -> None:
    overrides = [
        f"root={tmp_path}/root",
        f"state={tmp_path}/state",
        f"listen=[unix://{tmp_path}/s]",
        "streaming.port=0",
        "metrics.address=",
    ]
    config = load_config(default_file=tmp_path / "none", overrides=overrides)
    before = Path("/proc/self/mountinfo").read_bytes()
    rows = {row.name: row for row in asyncio.run(collect(config))}
    assert [row for row in rows.values() if row.level is Level.FAILED] == []
    assert str(shutil.which("runc")) in rows["runtime runc"].detail
    assert rows["conmon"].level is Level.OK
    assert Path("/proc/self/mountinfo").read_bytes() == before
    assert list(tmp_path.iterdir()) == []


def test_an_overlay_is_really_tried(tmp_path: Path) -> None:
    row = overlayfs(tmp_path)
    assert (row.level, row.detail) == (Level.OK, f"mounted and unmounted on {tmp_path}")
    assert list(tmp_path.iterdir()) == []
