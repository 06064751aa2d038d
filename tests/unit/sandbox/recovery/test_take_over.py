"""What a shim runs is taken over: followed and held where the shim lives, left to the exit watch where it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from cri_shim.host.process import Reaper
from cri_shim.oci.shim.requests import TaskPlan
from cri_shim.paths import Paths
from cri_shim.sandbox.recovery.take_over import plan_of, take_over
from tests.fakes.node_harness import container_config
from tests.fakes.task_shim import ShimHandler, shim_handler
from tests.unit.sandbox.records import make_container

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.asyncio
POD = "p" * 64


async def test_a_container_is_planned_as_it_was_created(tmp_path: Path) -> None:
    config = container_config()
    config.stdin = config.stdin_once = config.tty = True
    container, paths = make_container(config=config), Paths(tmp_path, tmp_path)
    assert plan_of(container, paths) == TaskPlan(
        container.id,
        container.sandbox_id,
        paths.container(container.id).bundle_dir,
        None,
        terminal=True,
        stdin=True,
        stdin_once=True,
    )


async def test_what_lives_is_followed_and_what_is_gone_is_left_alone(short_path: Path) -> None:
    reaper = Reaper()
    reaper.open()
    try:
        async with shim_handler(short_path, reaper) as at:
            await at.run(POD)
            successor = ShimHandler(at.base, at.shim, reaper)
            plan = TaskPlan(POD, POD, at.base / "bundle")
            await take_over(plan, successor.runtime)
            assert successor.streams.expected == [POD]
            assert successor.shims.connections == 1
            with capture_logs() as logs:
                await take_over(TaskPlan("q" * 64, POD, at.base), successor.runtime)
            assert [line["event"] for line in logs] == ["shim not reached"]
            await successor.close()
    finally:
        reaper.close()
