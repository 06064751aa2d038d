"""STATUS, GC and VERSION of a network's plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim.cni.invoke import PluginRunner
from cri_shim.cni.network_verbs import ask_status, collect_garbage, supported_versions
from cri_shim.errors import CniPluginError

if TYPE_CHECKING:
    from cri_shim.cni.conf import NetworkList
    from cri_shim.host.process import Reaper
    from tests.unit.cni.conftest import Node

pytestmark = pytest.mark.asyncio


@pytest.fixture
def runner(node: Node, reaper: Reaper) -> PluginRunner:
    return PluginRunner(reaper, [node.root / "bin"], timeout_s=20, cancel_grace_s=0.1)


def network(node: Node, version: str = "1.1.0", *, disable_gc: bool = False) -> NetworkList:
    node.configure(version=version, disableGC=disable_gc)
    return node.cni.default_network()


async def test_status_asks_every_plugin_and_gives_no_attachment(
    node: Node, runner: PluginRunner
) -> None:
    await ask_status(runner, network(node))
    assert node.order() == ["STATUS first", "STATUS second"]
    assert sorted(node.calls()[0]["env"]) == ["CNI_COMMAND", "CNI_PATH"]
    stdin = node.calls()[0]["stdin"]
    assert (stdin["name"], stdin["cniVersion"]) == ("pods", "1.1.0")
    assert not {"prevResult", "runtimeConfig", "cni.dev/valid-attachments"} & set(stdin)


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
async def test_older_lists_are_ready_and_have_no_garbage(
    node: Node, runner: PluginRunner, version: str
) -> None:
    node.script("first", STATUS={"do": "fail"}, GC={"do": "fail"})
    await ask_status(runner, network(node, version))
    await collect_garbage(runner, network(node, version), [])
    assert node.calls() == []


@pytest.mark.parametrize(
    ("step", "code", "complaint"),
    [
        ({"do": "fail", "code": 50, "msg": "no addresses left"}, 50, r"no addresses left \(code"),
        ({"do": "fail", "code": 51, "msg": "its daemon is gone"}, 51, "its daemon is gone"),
        ({"do": "die"}, 0, "it hurts"),
        ({"do": "crash"}, 0, "SIGSEGV"),
        ({"do": "flood", "bytes": 4 << 20}, 0, "printed more than"),
    ],
)
async def test_a_plugin_that_is_not_ready_is_quoted(
    node: Node, runner: PluginRunner, step: dict[str, object], code: int, complaint: str
) -> None:
    node.script("second", STATUS=step)
    with pytest.raises(CniPluginError, match=f"second: STATUS: .*{complaint}") as caught:
        await ask_status(runner, network(node))
    assert caught.value.code == code


async def test_a_plugin_that_hangs_is_not_ready(node: Node, reaper: Reaper) -> None:
    node.script("first", STATUS={"do": "hang", "helper": True})
    hasty = PluginRunner(reaper, [node.root / "bin"], timeout_s=0.5, cancel_grace_s=0.1)
    with pytest.raises(CniPluginError, match=r"first: STATUS: no answer within 0\.5 s"):
        await ask_status(hasty, network(node))


@pytest.mark.parametrize("step", [{"do": "garbage"}, {"do": "silent"}])
async def test_what_a_ready_plugin_prints_does_not_matter(
    node: Node, runner: PluginRunner, step: dict[str, object]
) -> None:
    node.script("first", STATUS=step)
    await ask_status(runner, network(node))


@pytest.mark.parametrize("code", [3, 4])
@pytest.mark.parametrize("version", [{}, {"do": "die"}, {"do": "garbage"}, {"versions": []}])
async def test_a_plugin_that_knows_no_such_verb_is_ready(
    node: Node, runner: PluginRunner, code: int, version: dict[str, object]
) -> None:
    step = {"do": "fail", "code": code, "msg": "unknown CNI_COMMAND"}
    node.script("first", STATUS=step, GC=step, VERSION=version)
    await ask_status(runner, network(node))
    await collect_garbage(runner, network(node), [])


async def test_a_plugin_that_is_too_old_for_its_list_is_named_with_what_it_supports(
    node: Node, runner: PluginRunner
) -> None:
    node.script("first", STATUS={"do": "fail", "code": 3}, VERSION={"versions": ["0.4.0", "1.0.0"]})
    with pytest.raises(
        CniPluginError, match=r"supports 0\.4\.0, 1\.0\.0, but .* has cniVersion 1\.1\.0"
    ):
        await ask_status(runner, network(node))


async def test_versions_are_those_the_plugin_names(node: Node, runner: PluginRunner) -> None:
    node.script("first", VERSION={"versions": ["1.0.0"]})
    conf = network(node)
    assert await supported_versions(runner, conf, conf.plugins[0]) == ("1.0.0",)
    node.script("first", VERSION={"do": "garbage"})
    assert await supported_versions(runner, conf, conf.plugins[0]) == ()


async def test_gc_tells_every_plugin_what_must_stay(node: Node, runner: PluginRunner) -> None:
    for name in ("a-eth0", "b-eth0"):
        (node.leases("second") / name).touch()
    await collect_garbage(runner, network(node), [("a", "eth0")])
    assert node.order() == ["GC first", "GC second"]
    assert node.calls()[0]["stdin"]["cni.dev/valid-attachments"] == [
        {"containerID": "a", "ifname": "eth0"}
    ]
    assert [lease.name for lease in node.leases("second").iterdir()] == ["a-eth0"]


async def test_gc_goes_on_after_a_failure_and_reports_the_first(
    node: Node, runner: PluginRunner
) -> None:
    node.script("first", GC={"do": "fail", "msg": "its database is locked"})
    node.script("second", GC={"do": "die"})
    with pytest.raises(CniPluginError, match="first: GC: its database is locked"):
        await collect_garbage(runner, network(node), [])
    assert node.order() == ["GC first", "GC second"]


async def test_gc_can_be_forbidden_by_the_list(node: Node, runner: PluginRunner) -> None:
    await collect_garbage(runner, network(node, disable_gc=True), [])
    assert node.calls() == []
