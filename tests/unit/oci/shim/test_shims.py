"""Who waits for the ends of shims' containers: over broken connections, and for what clients of streams ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim._pb.shim.v2 import task_pb2 as pb
from cri_shim.errors import CriShimError, UnavailableError
from cri_shim.oci.shim.bootstrap import Bootstrapped
from tests.fakes.clock import turn_over, until
from tests.unit.oci.shim.test_runtime import ONE, POD, scene

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.asyncio


async def test_a_broken_connection_is_made_anew_and_the_end_still_known(short_path: Path) -> None:
    async with scene(short_path) as at:
        await at.both()
        at.shims.disconnect(str(at.shim.socket))
        at.shim.end(ONE, 3)
        assert (await at.exit_of(ONE))[0] == "3"


async def test_nobody_waits_for_a_shim_that_is_gone(short_path: Path) -> None:
    async with scene(short_path) as at:
        await at.both()
        at.shim.socket.unlink()
        at.shims.disconnect(str(at.shim.socket))
        await until(lambda: at.shims.following == ())
        assert not (at.exits / ONE).exists()
        shim = Bootstrapped(str(short_path / "no-shim"), 2)
        with pytest.raises(UnavailableError, match="no-shim"):
            await at.shims.connect(shim, handler="h", timeout_s=1)


async def test_an_exit_is_told_also_if_the_rest_of_the_output_is_lost(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(short_path) as at:
        await at.both()

        async def fail(_container_id: str, *, at_once: bool = False) -> None:
            raise CriShimError("nobody holds it")

        monkeypatch.setattr(at.streams, "finish", fail)
        at.shim.end(ONE, 4)
        assert (await at.exit_of(ONE))[0] == "4"


async def test_sizes_and_ends_of_inputs_reach_the_shim(short_path: Path) -> None:
    async with scene(short_path) as at:
        await at.both()
        at.streams.on_size(ONE, 80, 24)
        at.streams.on_input_end(ONE)
        at.streams.on_size("unknown", 1, 1)
        at.streams.on_input_end("unknown")
        await until(lambda: at.shim.requested(pb.CloseIORequest))
        await until(lambda: at.shim.requested(pb.ResizePtyRequest))
        (size,) = at.shim.requested(pb.ResizePtyRequest)
        assert (size.id, size.width, size.height) == (ONE, 80, 24)
        await at.runtime.delete(ONE, force=True)
        await turn_over()
        assert at.shims.following == (POD,)
