"""That the parts are put together: what has to know of whom does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
import pytest_asyncio

from cri_shim.config.model import CgroupDriver
from cri_shim.daemon.build import Parts, build
from cri_shim.errors import ConfigError
from cri_shim.paths import Paths
from cri_shim.sandbox.exits import Exit
from cri_shim.sandbox.store.model import (
    ContainerState,
    ContainerStatus,
    SandboxState,
    SandboxStatus,
)
from tests.unit.sandbox.records import make_container, make_sandbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cri_shim.config import Config
    from cri_shim.host.process import Reaper

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("recorded_node")]


def prepare(config: Config) -> Paths:
    paths = Paths(config.root, config.state)
    for directory in (
        *(paths.sandboxes_dir, paths.containers_dir, paths.exits_dir, paths.console_dir),
        *(paths.state / "sandboxes", paths.state / "containers"),
    ):
        directory.mkdir(parents=True)
    return paths


@pytest_asyncio.fixture
async def parts(config: Config, reaper: Reaper, tmp_path: Path) -> AsyncIterator[Parts]:
    built = await build(
        config, paths=prepare(config), reaper=reaper, cni_cache_dir=tmp_path / "cache"
    )
    built.exits.open(built.exit_dispatcher.dispatch)
    yield built
    built.exits.close()
    await built.images.close()


async def test_nothing_is_there_at_first(parts: Parts) -> None:
    assert parts.pods.list_pod_sandbox() == []
    assert parts.container_service.list_containers() == []
    assert list(parts.images.images()) == []
    assert not parts.systemd


async def test_an_end_reaches_the_container_or_the_sandbox_that_it_is_of(parts: Parts) -> None:
    sandbox = make_sandbox(status=SandboxStatus(ready_at_ns=1))
    container = make_container(status=ContainerStatus(committed_at_ns=1, started_at_ns=1))
    parts.sandboxes.create(sandbox)
    parts.containers.create(container)
    parts.exit_dispatcher.dispatch(sandbox.id, Exit(1, 5))
    assert sandbox.state is SandboxState.NOT_READY
    parts.exit_dispatcher.dispatch(container.id, Exit(2, 5))
    parts.exit_dispatcher.dispatch("f" * 64, Exit(3, 5))  # nobody's: no harm
    await parts.background.close(5)
    assert container.state is ContainerState.EXITED
    assert container.status.exit_code == 2


async def test_the_layers_of_containers_and_sandboxes_are_in_use(parts: Parts) -> None:
    in_use = parts.images.layers_in_use
    assert set(in_use()) == set()
    parts.sandboxes.create(make_sandbox())
    assert set(in_use()) == {"base"}
    parts.containers.create(make_container())
    assert set(in_use()) == {"base"}


async def test_the_pods_of_a_recovered_daemon_know_their_containers(parts: Parts) -> None:
    sandbox = make_sandbox(status=SandboxStatus(ready_at_ns=1, stopped_at_ns=2, torn_down=True))
    parts.sandboxes.create(sandbox)
    container = make_container(
        sandbox_id=sandbox.id,
        status=ContainerStatus(committed_at_ns=1, finished_at_ns=2, torn_down=True),
    )
    parts.containers.create(container)
    await parts.pods.remove_pod_sandbox(sandbox.id)
    assert list(parts.containers) == []
    assert list(parts.sandboxes) == []


async def test_a_driver_that_the_node_does_not_have_is_refused(
    config: Config, reaper: Reaper, tmp_path: Path
) -> None:
    if Path("/run/systemd/system").is_dir():
        pytest.skip("systemd runs here, so its driver is no mistake")
    wrong = msgspec.structs.replace(config, cgroup_driver=CgroupDriver.SYSTEMD)
    with pytest.raises(ConfigError, match="systemd"):
        await build(wrong, paths=prepare(config), reaper=reaper, cni_cache_dir=tmp_path)
