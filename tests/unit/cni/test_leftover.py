from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim.cni import leftover
from cri_shim.cni.cache import CacheEntry, ResultCache
from cri_shim.cni.conf import build_plugin_config
from cri_shim.cni.leftover import leftover_plugins
from cri_shim.errors import DeadlineError

from .conftest import CONTAINER_ID, Node, make_cni, until

if TYPE_CHECKING:
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
    await make_cni(node.root, reaper, timeout_s=1).delete(node.attachment())
    assert orphan.ending is not None
    assert leftover_plugins(CONTAINER_ID, [node.root / "bin"]) == {}
    assert node.held() == []


async def test_plugins_at_work_for_other_containers_are_not_waited_for(
    node: Node, reaper: Reaper
) -> None:
    node.script("first", ADD={"do": "hang"})
    orphan = start_orphan(node, reaper)
    await until(lambda: node.held() == ["first"])
    assert set(leftover_plugins(CONTAINER_ID, [node.root / "bin"])) == {orphan.pid}
    assert leftover_plugins("d" * 64, [node.root / "bin"]) == {}
    assert leftover_plugins(CONTAINER_ID, [node.root / "elsewhere"]) == {}
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
    monkeypatch.setattr(leftover, "kill_process", lambda *_: False)
    monkeypatch.setattr(leftover, "KILL_GRACE_S", 0.1)
    with pytest.raises(DeadlineError, match=rf"{orphan.pid}.*hang in the kernel"):
        await leftover.wait_for_leftover_plugins(CONTAINER_ID, [node.root / "bin"], timeout_s=0.05)
    orphan.kill()
    await orphan.wait()
