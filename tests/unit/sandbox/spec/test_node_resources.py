from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import structlog

from cri_shim.background import Background
from cri_shim.oci.cdi_registry import CdiRegistry
from cri_shim.oci.hook_files import HookFiles
from cri_shim.sandbox.spec.node_resources import NodeResources
from tests.fakes.clock import until

if TYPE_CHECKING:
    from pathlib import Path


def test_without_configuration_there_is_nothing() -> None:
    node_resources = NodeResources()
    assert node_resources.hooks.current() == ()
    assert node_resources.cdi.edits_for(()) == ()
    node_resources.close()


@pytest.mark.asyncio
async def test_devices_and_hooks_are_followed(tmp_path: Path) -> None:
    node_resources = NodeResources(cdi=CdiRegistry([tmp_path]), hooks=HookFiles([tmp_path]))
    background = Background()
    node_resources.watch(background)
    node_resources.follow()
    with structlog.testing.capture_logs() as logged:
        (tmp_path / "bad.json").write_text("{")
        await until(lambda: len([entry for entry in logged if "problem" in entry]) == 2)
    node_resources.close()
    await background.close(5)
