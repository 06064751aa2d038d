from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from cri_shim import operations as module
from cri_shim.cli.checks import daemon as checks
from cri_shim.cli.checks.row import Level
from cri_shim.config import Config
from cri_shim.config.values import ListenUrl
from cri_shim.ids import new_id
from cri_shim.operations import step
from tests.unit.rpc.fakes import serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("quiet_server")]


def config(directory: Path) -> Config:
    return Config(listen=(ListenUrl(f"unix://{directory}/cri.sock"),))


async def test_what_is_under_way_for_long_is_told_with_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    object_id = new_id()
    async with serving(tmp_path) as (daemon, _):
        row = await asyncio.to_thread(checks.operations, config(tmp_path))
        assert (row.level, row.detail) == (
            Level.OK,
            "0 under way, none for more than a minute",
        )
        with daemon.operations.begin("StopPodSandbox", object_id), step("cni DEL bridge"):
            monkeypatch.setattr(checks, "SLOW_S", 0.0)
            row = await asyncio.to_thread(checks.operations, config(tmp_path))
    assert module.SLOW_S == 60
    assert row.level is Level.WARNING
    assert row.detail.startswith("1 operation for more than a minute; the first, of ")
    assert f"{object_id[:13]}: StopPodSandbox: cni DEL bridge (0.0 s)" in row.detail
    assert "cri-shim status" in row.remedy


async def test_without_a_daemon_nothing_hangs(tmp_path: Path) -> None:
    row = await asyncio.to_thread(checks.operations, config(tmp_path))
    assert (row.level, row.detail) == (Level.OK, "no daemon runs")


async def test_a_daemon_that_does_not_answer_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "ANSWER_S", 0.3)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{tmp_path}/cri.sock")
        silent.listen()
        row = await asyncio.to_thread(checks.operations, config(tmp_path))
    assert row.level is Level.WARNING
    assert row.detail.startswith("asking the daemon: ")
