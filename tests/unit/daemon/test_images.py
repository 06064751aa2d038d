from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from structlog.testing import capture_logs

from cri_shim.daemon.images import layers_of, open_offline, open_store, pinned
from cri_shim.errors import AlreadyExistsError, CriShimError
from cri_shim.paths import Paths
from tests.unit.sandbox.records import make_container, make_sandbox

if TYPE_CHECKING:
    from cri_shim.config import Config
    from cri_shim.host.process import Reaper
    from cri_shim.sandbox.store.store import Container, Sandbox

pytestmark = pytest.mark.asyncio


def put_down(paths: Paths, item: Sandbox | Container, *, is_sandbox: bool) -> None:
    """Its files, as a daemon leaves them."""
    files = paths.sandbox(item.id) if is_sandbox else paths.container(item.id)
    files.root_dir.mkdir(parents=True)
    files.record_file.write_bytes(msgspec.json.encode(item.record))
    files.status_file.write_bytes(msgspec.json.encode(item.status))


async def left_after_a_sweep(config: Config, *directories: str) -> set[str]:
    """Which of these layers without a record stay."""
    layers_dir = Paths(config.root, config.state).layers_dir
    for name in directories:
        (layers_dir / name).mkdir(parents=True)
    async with open_offline(config) as images:
        await images.store.sweep()
    return {path.name for path in layers_dir.iterdir()} & set(directories)


async def test_what_is_configured_and_the_pause_image_are_pinned(config: Config) -> None:
    images = msgspec.structs.replace(config.images, pinned=("app:1", "r.example/*"))
    assert pinned(msgspec.structs.replace(config, images=images)) == ("app:1", "r.example/*")
    sandbox = msgspec.structs.replace(config.sandbox, image="r.example/pause:3")
    assert pinned(msgspec.structs.replace(config, sandbox=sandbox)) == ("r.example/pause:3",)


async def test_a_store_that_is_opened_alone_keeps_what_records_name(config: Config) -> None:
    paths = Paths(config.root, config.state)
    sandbox, container = make_sandbox(), make_container()
    put_down(paths, sandbox, is_sandbox=True)
    put_down(paths, container, is_sandbox=False)
    used = layers_of([sandbox, container])
    assert used
    assert await left_after_a_sweep(config, *used, "zz") == used


async def test_a_record_that_can_not_be_read_keeps_every_layer(config: Config) -> None:
    paths = Paths(config.root, config.state)
    put_down(paths, make_sandbox(), is_sandbox=True)
    container = make_container()
    put_down(paths, container, is_sandbox=False)
    paths.container(container.id).record_file.write_text("{")
    with capture_logs() as logs:
        assert await left_after_a_sweep(config, "0", "7z") == {"0", "7z"}
    assert "all layers count as in use" in logs[0]["event"]


async def test_a_store_is_opened_once_at_a_time(config: Config) -> None:
    async with open_offline(config):
        with pytest.raises(AlreadyExistsError, match="in use by process"):
            async with open_offline(config):
                pass
    async with open_offline(config):
        assert config.root.stat().st_mode & 0o777 == 0o700


async def test_a_store_that_can_not_be_opened_says_where(config: Config, reaper: Reaper) -> None:
    paths = Paths(config.root, config.state)
    config.root.mkdir()
    paths.images_dir.touch()
    with pytest.raises(CriShimError, match=f"opening the images of {config.root}: "):
        await open_store(config, paths, reaper, set)
