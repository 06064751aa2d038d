from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import msgspec
import pytest

from cri_shim.config.model import SecuritySettings
from cri_shim.daemon.node_resources import open_node_resources
from cri_shim.errors import ConfigError
from cri_shim.paths import Paths
from cri_shim.sandbox.store.store import Store, read_container, read_sandbox

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.host.process import Reaper
    from cri_shim.sandbox.spec.node_resources import NodeResources


async def provided(tmp_path: Path, reaper: Reaper, **settings: object) -> NodeResources:
    paths = Paths(tmp_path / "root", tmp_path / "state")
    return await open_node_resources(
        msgspec.structs.replace(SecuritySettings(), **settings),
        paths=paths,
        reaper=reaper,
        sandboxes=Store("sandbox", paths.sandboxes_dir, paths.sandbox, read_sandbox),
        containers=Store("container", paths.containers_dir, paths.container, read_container),
    )


@pytest.mark.asyncio
async def test_directories_are_those_configured(tmp_path: Path, reaper: Reaper) -> None:
    (tmp_path / "bad.json").write_text("{")
    made = await provided(tmp_path, reaper, cdi_dirs=(tmp_path,), hooks_dirs=(tmp_path,))
    assert len(made.cdi.files.problems()) == len(made.hooks.files.problems()) == 1
    assert {field.name for field in dataclasses.fields(made)} >= {"apparmor", "selinux"}


@pytest.mark.asyncio
async def test_hook_list_that_cannot_be_used_is_a_mistake(tmp_path: Path, reaper: Reaper) -> None:
    with pytest.raises(ConfigError, match=r"security\.hook_spec"):
        await provided(tmp_path, reaper, hook_spec=tmp_path / "none.json")
