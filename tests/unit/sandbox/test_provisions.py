from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import structlog

from cri_shim.background import Background
from cri_shim.oci.cdi_registry import CdiRegistry
from cri_shim.oci.hook_files import HookFiles
from cri_shim.sandbox.provisions import Provisions

if TYPE_CHECKING:
    from pathlib import Path


def test_without_configuration_there_is_nothing() -> None:
    provisions = Provisions()
    assert provisions.hooks.current() == ()
    assert provisions.cdi.edits_for(()) == ()
    provisions.close()


@pytest.mark.asyncio
async def test_devices_and_hooks_are_followed(tmp_path: Path) -> None:
    provisions = Provisions(cdi=CdiRegistry([tmp_path]), hooks=HookFiles([tmp_path]))
    background = Background()
    provisions.watch(background)
    provisions.follow()
    with structlog.testing.capture_logs() as logged:
        (tmp_path / "bad.json").write_text("{")
        for _ in range(500):
            if len([entry for entry in logged if "problem" in entry]) == 2:
                break
            await asyncio.sleep(0.02)
        else:
            raise TimeoutError
    provisions.close()
    await background.close(5)
