from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from cri_shim.cni import leftover
from cri_shim.cni.cache import CacheEntry, ResultCache
from cri_shim.cni.conf import build_plugin_config
from cri_shim.cni.leftover import LeftoverPlugins, plugins_at_work
from cri_shim.errors import CniPluginError, DeadlineError
from cri_shim.host import proctree
from tests.fakes.clock import until

from .conftest import CONTAINER_ID, Node, make_cni

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cri_shim.host.process import Child, Reaper

pytestmark = pytest.mark.asyncio


async def test_a_successor_waits_for_the_plugin_of_a_dead_daemon(
    node: Node, reaper: Reaper
) -> None:
    node.script("first", ADD={"delay": 0.5, "do": "succeed"})
    orphan = start_orphan(node, reaper)
    await until(lambda: node.order() == ["ADD first"])
    await make_cni(node.root, reaper).delete(node.attachment())
    assert orphan.ending is not None
    assert node.order() == ["ADD first", "DEL second", "DEL first"]
    assert node.held() == []


async def test_a_successor_kills_the_plugin_of_a_dead_daemon_at_the_deadline(
    node: Node, reaper: Reaper
) -> None:
    node.script("first", ADD={"do": "hang", "helper": True})
    orphan = start_orphan(node, reaper)
    await until(lambda: node.held() == ["first"])
    with contextlib.suppress(
        CniPluginError
    ):  # a busy machine: its own DEL gets no more than the orphan
        await make_cni(node.root, reaper, timeout_s=1).delete(node.attachment())
    assert orphan.ending is not None
    assert plugins_at_work([node.root / "bin"]) == {}
    await node.cni.delete(node.attachment())
    assert node.held() == []


async def test_plugins_at_work_for_other_containers_are_not_waited_for(
    node: Node, reaper: Reaper
) -> None:
    node.script("first", ADD={"do": "hang"})
    orphan = start_orphan(node, reaper)
    await until(lambda: node.held() == ["first"])
    found = plugins_at_work([node.root / "bin"])
    assert {of: set(plugins) for of, plugins in found.items()} == {CONTAINER_ID: {orphan.pid}}
    assert plugins_at_work([node.root / "bin"], CONTAINER_ID) == found
    assert plugins_at_work([node.root / "bin"], "d" * 64) == {}
    assert plugins_at_work([node.root / "elsewhere"]) == {}
    leftovers = LeftoverPlugins([node.root / "bin"])
    await leftovers.wait("d" * 64, timeout_s=0)
    assert leftovers.at_work(CONTAINER_ID)
    assert orphan.ending is None
    orphan.kill()
    await orphan.wait()


def start_orphan(node: Node, reaper: Reaper) -> Child:
    """The first plugin of the chain, as a daemon that has died since would have called it."""
    network = node.cni.default_network()
    ResultCache(node.cache_dir).save(CacheEntry.of(node.attachment(), network.document))
    config = node.root / "config"
    config.write_bytes(build_plugin_config(network, network.plugins[0]))
    with config.open("rb") as stdin:
        return reaper.spawn(
            [str(node.root / "bin" / "first")],
            stdin=stdin.fileno(),
            env={
                "CNI_COMMAND": "ADD",
                "CNI_CONTAINERID": CONTAINER_ID,
                "CNI_IFNAME": "eth0",
                "CNI_NETNS": node.netns,
            },
        )


async def test_one_that_outlives_being_killed_is_given_up(
    node: Node, reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.script("first", ADD={"do": "hang"})
    orphan = start_orphan(node, reaper)
    await until(lambda: node.held() == ["first"])
    # It sits in the kernel, as far as a signal is concerned.
    monkeypatch.setattr(proctree, "kill_process", lambda *_: False)
    monkeypatch.setattr(leftover, "KILL_GRACE_S", 0.1)
    with pytest.raises(DeadlineError, match=rf"{orphan.pid}.*hang in the kernel"):
        await LeftoverPlugins([node.root / "bin"]).wait(CONTAINER_ID, timeout_s=0.05)
    orphan.kill()
    await orphan.wait()


async def test_one_is_ended_on_request_with_the_helper_it_had(node: Node, reaper: Reaper) -> None:
    node.script("first", ADD={"do": "hang", "helper": True})
    orphan = start_orphan(node, reaper)
    await until(lambda: node.held() == ["first"])
    leftovers = LeftoverPlugins([node.root / "bin"])
    await leftovers.find()
    assert leftovers.at_work(CONTAINER_ID)
    await leftovers.end(CONTAINER_ID)
    assert not leftovers.at_work(CONTAINER_ID)
    assert orphan.ending is not None
    assert plugins_at_work([node.root / "bin"]) == {}


async def test_processes_are_looked_at_once_for_all_containers_and_not_while_one_waits(
    node: Node, reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str | None] = []

    def look(
        plugin_dirs: Sequence[Path], container_id: str | None = None
    ) -> dict[str, dict[int, int]]:
        looks.append(container_id)
        return plugins_at_work(plugin_dirs, container_id)

    monkeypatch.setattr(leftover, "plugins_at_work", look)
    node.script("first", ADD={"delay": 0.3, "do": "succeed"})
    start_orphan(node, reaper)
    await until(lambda: node.order() == ["ADD first"])
    leftovers = LeftoverPlugins([node.root / "bin"])
    for number in range(9):
        await leftovers.wait(str(number) * 64, timeout_s=0)
    await leftovers.wait(CONTAINER_ID, timeout_s=20)
    assert looks == [None, CONTAINER_ID]
