"""A root whose daemon does not run, opened to be wiped; on recorded cgroups, with nothing in it but damage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim.daemon.locks import daemon_locks
from cri_shim.daemon.offline import open_to_wipe
from cri_shim.errors import AlreadyExistsError
from cri_shim.ids import new_id
from cri_shim.paths import Paths

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.config import Config

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("recorded_node")]


async def test_damaged_records_and_leftovers_go(config: Config, tmp_path: Path) -> None:
    paths = Paths(config.root, config.state)
    damaged, leftover = paths.sandbox(new_id()), paths.container(new_id())
    damaged.root_dir.mkdir(parents=True)
    damaged.record_file.write_text("{")
    leftover.state_dir.mkdir(parents=True)
    said: list[str] = []
    async with open_to_wipe(config, cni_cache_dir=tmp_path / "cache") as wipe:
        wiped = await wipe.run(images=True, tell=lambda step, *_: said.append(step))
    assert (wiped.sandboxes, wiped.leftovers, wiped.left) == (0, 1, [])
    assert "removing leftovers" in said
    for directory in (paths.sandboxes_dir, paths.damaged_dir, paths.state / "containers"):
        assert list(directory.iterdir()) == []


async def test_no_daemon_can_start_beside_it_and_none_may_run(
    config: Config, tmp_path: Path
) -> None:
    paths = Paths(config.root, config.state)
    async with open_to_wipe(config, cni_cache_dir=tmp_path / "cache"):
        for lock in daemon_locks(config, paths):
            with pytest.raises(AlreadyExistsError):
                lock.acquire()
    with next(iter(daemon_locks(config, paths))), pytest.raises(AlreadyExistsError, match="root"):
        async with open_to_wipe(config, cni_cache_dir=tmp_path / "cache"):
            pass
