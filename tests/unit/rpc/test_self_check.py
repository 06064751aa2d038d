from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from cri_shim.rpc.self_check import SelfCheck
from tests.unit.rpc.fakes import serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.asyncio


class _Closing(SelfCheck):
    async def aclose(self) -> None:
        await self.close()


async def test_a_server_that_answers_is_well_also_while_it_recovers(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, is_ready=False) as (daemon, _),
        aclosing(_Closing(daemon.socket_path)) as check,
    ):
        assert await check.problem(5) == ""
        await daemon.listeners.stop(0.1)
        assert await check.problem(0.2) != ""


async def test_a_socket_without_a_server_is_a_problem(tmp_path: Path) -> None:
    async with aclosing(_Closing(tmp_path / "s")) as check:
        assert (await check.problem(1)).startswith(("UNAVAILABLE", "DEADLINE_EXCEEDED"))
