from __future__ import annotations

import asyncio
import json
import shutil
from typing import TYPE_CHECKING

import pytest

from cri_shim import metrics
from cri_shim.cni.result import pod_ips
from cri_shim.errors import (
    AlreadyExistsError,
    CniPluginError,
    InvalidArgumentError,
    NotReadyError,
    WrongStateError,
)
from tests.fakes.clock import until
from tests.fakes.cni_plugin import install_plugin

from .conftest import CONTAINER_ID, Node, make_cni

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from cri_shim.host.process import Reaper

pytestmark = pytest.mark.asyncio

CHAIN_ADD = ["ADD first", "ADD second"]
CHAIN_DEL = ["DEL second", "DEL first"]


async def test_add_runs_the_chain_in_order_and_hands_the_result_on(node: Node) -> None:
    result = await node.cni.add(node.attachment())
    assert pod_ips(result, "eth0") == ("10.9.0.2",)
    assert node.order() == CHAIN_ADD
    first, second = (call["stdin"] for call in node.calls())
    assert "prevResult" not in first
    assert second["prevResult"] == result.raw
    assert "runtimeConfig" not in first
    assert second["runtimeConfig"] == {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}
    assert {first["name"], second["name"]} == {"pods"}


async def test_delete_runs_the_chain_backwards_with_the_result_and_forgets(node: Node) -> None:
    result = await node.cni.add(node.attachment())
    await node.cni.delete(node.attachment())
    assert node.order() == CHAIN_ADD + CHAIN_DEL
    for call in node.calls()[2:]:
        assert call["stdin"]["prevResult"] == result.raw
        assert call["env"]["CNI_NETNS"] == node.netns
        assert call["env"]["CNI_ARGS"] == "K8S_POD_NAME=web"
    assert node.held() == []
    assert list(node.cache_dir.iterdir()) == []


@pytest.mark.parametrize("version", ["0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
async def test_every_version_attaches_and_detaches(node: Node, version: str) -> None:
    node.configure(version=version)
    result = await node.cni.add(node.attachment())
    await node.cni.delete(node.attachment())
    assert pod_ips(result, "eth0") == ("10.9.0.2",)
    told = ["prevResult" in call["stdin"] for call in node.calls()[2:]]
    assert told == [version not in ("0.2.0", "0.3.0", "0.3.1")] * 2
    assert node.held() == []


async def test_delete_uses_what_add_was_told_not_what_is_asked_or_configured_now(
    node: Node,
) -> None:
    await node.cni.add(node.attachment())
    (node.conf_dir / "10-pods.conflist").write_text(
        '{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "absent"}]}'
    )
    await node.cni.delete(node.attachment(args={"OTHER": "1"}, capability_args={}))
    assert node.order() == CHAIN_ADD + CHAIN_DEL
    assert node.calls()[2]["env"]["CNI_ARGS"] == "K8S_POD_NAME=web"
    assert node.calls()[2]["stdin"]["runtimeConfig"]["portMappings"]


async def test_delete_after_the_configuration_has_gone_still_detaches(node: Node) -> None:
    await node.cni.add(node.attachment())
    shutil.rmtree(node.conf_dir)
    await node.cni.delete(node.attachment())
    assert node.held() == []


@pytest.mark.parametrize("gone", ["/run/netns/never-was", "/etc/hostname", "/proc/self/ns/net"])
async def test_delete_without_the_namespace_passes_an_empty_one(node: Node, gone: str) -> None:
    await node.cni.add(node.attachment())
    await node.cni.delete(node.attachment(netns=gone))
    assert [call["env"]["CNI_NETNS"] for call in node.calls()[2:]] == ["", ""]
    assert node.held() == []


async def test_delete_may_be_repeated(node: Node) -> None:
    await node.cni.add(node.attachment())
    for _ in range(3):
        await node.cni.delete(node.attachment())
    assert node.held() == []


async def test_delete_of_what_is_neither_cached_nor_configured_does_nothing(node: Node) -> None:
    await node.cni.delete(node.attachment(network="unheard-of"))
    assert node.calls() == []


@pytest.mark.parametrize("failing", ["first", "second"])
@pytest.mark.parametrize(
    ("step", "complaint"),
    [
        ({"do": "fail", "msg": "no", "code": 7}, r"CNI plugin \w+: ADD: no \(code 7\)"),
        ({"do": "fail", "after_effect": False}, "scripted failure"),
        ({"do": "die"}, "exited with status 3: it hurts"),
        ({"do": "garbage"}, "its result is not a JSON object"),
        ({"do": "garbage", "text": '{"ips": 7}'}, "its result is malformed"),
        ({"do": "silent"}, "it printed no result"),
        ({"do": "flood"}, "printed more than"),
        ({"do": "crash"}, "was killed by SIGSEGV"),
    ],
)
async def test_an_add_that_fails_anywhere_is_undone_by_delete(
    node: Node, failing: str, step: dict[str, object], complaint: str
) -> None:
    node.script(failing, ADD=step)
    with pytest.raises(CniPluginError, match=complaint) as caught:
        await node.cni.add(node.attachment())
    assert caught.value.plugin == failing
    await node.cni.delete(node.attachment())
    assert node.order()[-2:] == CHAIN_DEL
    assert node.held() == []
    assert list(node.cache_dir.iterdir()) == []


async def test_delete_after_a_chain_that_broke_knows_what_the_first_plugin_made(
    node: Node,
) -> None:
    node.script("second", ADD={"do": "fail"})
    with pytest.raises(CniPluginError):
        await node.cni.add(node.attachment())
    await node.cni.delete(node.attachment())
    assert node.calls()[-1]["stdin"]["prevResult"]["ips"][0]["address"] == "10.9.0.2/24"


async def test_a_crash_during_add_is_undone_by_the_next_process(node: Node, reaper: Reaper) -> None:
    node.script("first", ADD={"do": "hang"})
    work = asyncio.ensure_future(node.cni.add(node.attachment()))
    await until(lambda: node.held() == ["first"])
    left = node.cache_file().read_bytes()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert node.cache_file().read_bytes() == left
    assert "result" not in json.loads(left)

    successor = make_cni(node.root, reaper)
    (attachment,) = successor.attachments(CONTAINER_ID)
    assert attachment == node.attachment()
    await successor.delete(attachment)
    assert node.held() == []
    assert successor.attachments(CONTAINER_ID) == ()


async def test_a_hanging_chain_ends_in_time_and_names_the_seconds(
    node: Node, reaper: Reaper
) -> None:
    cni = make_cni(node.root, reaper, timeout_s=0.5)
    node.script("second", ADD={"do": "hang", "helper": True})
    async with asyncio.timeout(30):  # the script's sleep is longer
        with pytest.raises(CniPluginError, match=r"ADD: no answer within 0\.5 s"):
            await cni.add(node.attachment())
    await node.cni.delete(node.attachment())
    assert node.held() == []


@pytest.mark.parametrize("failing", ["first", "second"])
async def test_a_delete_that_fails_keeps_the_attachment_for_the_next(
    node: Node, failing: str
) -> None:
    await node.cni.add(node.attachment())
    node.script(failing, DEL={"do": "fail", "msg": "busy", "after_effect": False})
    with pytest.raises(CniPluginError, match=f"{failing}: DEL: busy"):
        await node.cni.delete(node.attachment())
    assert node.cni.attachments(CONTAINER_ID) == (node.attachment(),)
    node.script(failing)
    await node.cni.delete(node.attachment())
    assert node.held() == []


async def test_a_cancelled_delete_can_be_repeated(node: Node) -> None:
    await node.cni.add(node.attachment())
    node.script("second", DEL={"do": "hang", "after_effect": False})
    work = asyncio.ensure_future(node.cni.delete(node.attachment()))
    await until(lambda: node.order()[-1] == "DEL second")
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    node.script("second")
    await node.cni.delete(node.attachment())
    assert node.held() == []


async def test_operations_on_one_container_wait_for_each_other(node: Node) -> None:
    node.script("first", ADD={"delay": 0.3})
    await asyncio.gather(
        node.cni.add(node.attachment()),
        node.cni.delete(node.attachment()),
        node.cni.delete(node.attachment()),
    )
    assert node.order() == CHAIN_ADD + CHAIN_DEL + CHAIN_DEL
    assert node.held() == []


async def test_operations_on_different_containers_run_side_by_side(node: Node) -> None:
    node.script("first", ADD={"delay": 0.3})
    others = [node.attachment(container_id=f"c{number}") for number in range(3)]
    await asyncio.gather(*map(node.cni.add, others))
    assert node.order()[:3] == ["ADD first"] * 3
    await asyncio.gather(*map(node.cni.delete, others))
    assert node.held() == []


async def test_a_second_add_without_a_delete_is_refused(node: Node) -> None:
    await node.cni.add(node.attachment())
    with pytest.raises(AlreadyExistsError, match="attached already"):
        await node.cni.add(node.attachment())
    assert node.order() == CHAIN_ADD


@pytest.mark.parametrize(
    "netns", ["", "/run/netns/never-was", "/etc/hostname", "/proc/self/ns/net"]
)
async def test_no_plugin_is_pointed_at_what_is_not_a_namespace_of_a_pod(
    node: Node, netns: str
) -> None:
    with pytest.raises(InvalidArgumentError, match="is not a network namespace other than the"):
        await node.cni.add(node.attachment(netns=netns))
    assert node.calls() == []
    assert not node.cache_dir.exists()


async def test_an_unknown_network_is_refused_with_the_known_ones(node: Node) -> None:
    with pytest.raises(NotReadyError, match=r"'storage' is not configured in .*: pods"):
        await node.cni.add(node.attachment(network="storage"))


async def test_the_default_network_is_there_as_soon_as_its_file_is(node: Node) -> None:
    assert node.cni.default_network().name == "pods"
    (node.conf_dir / "10-pods.conflist").unlink()
    with pytest.raises(NotReadyError, match="no network configuration found in"):
        node.cni.default_network()
    node.configure(name="again")
    assert node.cni.default_network().name == "again"
    assert node.cni.status.ready


async def test_a_missing_plugin_makes_the_network_not_ready(node: Node) -> None:
    (node.root / "bin" / "second").unlink()
    with pytest.raises(NotReadyError, match="needs the CNI plugin second"):
        node.cni.default_network()


async def test_a_bad_cache_entry_does_not_stop_delete(node: Node) -> None:
    await node.cni.add(node.attachment())
    node.cache_file().write_bytes(b"torn")
    await node.cni.delete(node.attachment())
    assert node.held() == []


async def test_a_bad_configuration_in_the_cache_falls_back_to_the_configured_one(
    node: Node,
) -> None:
    await node.cni.add(node.attachment())
    entry = json.loads(node.cache_file().read_bytes())
    node.cache_file().write_text(json.dumps({**entry, "config": "e30=", "result": {"ips": 1}}))
    assert node.cni.cached_result(node.attachment()) is None
    await node.cni.delete(node.attachment())
    assert node.held() == []


async def test_the_cached_result_is_the_one_of_add(node: Node) -> None:
    assert node.cni.cached_result(node.attachment()) is None
    result = await node.cni.add(node.attachment())
    assert node.cni.cached_result(node.attachment()) == result


async def test_time_and_failures_are_counted_by_operation(node: Node) -> None:
    before = sample("seconds_count", "ADD"), sample("failures_total", "ADD")
    await node.cni.add(node.attachment())
    with pytest.raises(AlreadyExistsError):
        await node.cni.add(node.attachment())
    after = sample("seconds_count", "ADD"), sample("failures_total", "ADD")
    assert (after[0] - before[0], after[1] - before[1]) == (2, 1)


def sample(suffix: str, operation: str) -> float:
    for collector in (metrics.CNI_OPERATION_SECONDS, metrics.CNI_OPERATION_FAILURES):
        for metric in collector.collect():
            for found in metric.samples:
                if found.name.endswith(suffix) and found.labels.get("operation") == operation:
                    return found.value
    return 0.0


# --- CHECK -------------------------------------------------------------------------------------------------------


async def test_check_asks_the_chain_in_order_with_the_result_of_add(node: Node) -> None:
    await node.cni.add(node.attachment())
    await node.cni.check(node.attachment(args={"OTHER": "1"}))
    assert node.order()[-2:] == ["CHECK first", "CHECK second"]
    call = node.calls()[-1]
    assert call["stdin"]["prevResult"]["ips"][0]["address"] == "10.9.0.2/24"
    assert call["env"]["CNI_ARGS"] == "K8S_POD_NAME=web"
    (node.leases("first") / f"{CONTAINER_ID}-eth0").unlink()
    with pytest.raises(CniPluginError, match=r"first: CHECK: the lease of .* is gone"):
        await node.cni.check(node.attachment())


@pytest.mark.parametrize("conf", [{"version": "0.3.1"}, {"disableCheck": True}])
async def test_check_is_not_asked_of_lists_that_do_not_have_it(
    node: Node, conf: dict[str, Any]
) -> None:
    node.configure(**conf)
    await node.cni.check(node.attachment())
    await node.cni.add(node.attachment())
    await node.cni.check(node.attachment())
    assert node.order() == CHAIN_ADD


async def test_check_without_the_namespace_is_refused(node: Node) -> None:
    await node.cni.add(node.attachment())
    with pytest.raises(InvalidArgumentError, match="there is no network namespace"):
        await node.cni.check(node.attachment(netns="/run/netns/none"))


# --- garbage -----------------------------------------------------------------------------------------------------


async def collect(
    node: Node, *valid: tuple[str, str], known: Iterable[tuple[str, str]] = ()
) -> bool:
    return await node.cni.collect_garbage("pods", valid=lambda: valid, known=lambda: set(known))


async def test_garbage_is_what_belongs_to_no_valid_attachment(node: Node) -> None:
    node.configure(version="1.1.0")
    await node.cni.add(node.attachment())
    (node.leases("first") / "lost-eth0").touch()
    assert await collect(node, (CONTAINER_ID, "eth0"))
    assert [lease.name for lease in node.leases("first").iterdir()] == [f"{CONTAINER_ID}-eth0"]
    # One that is ours, though it may go, keeps nothing from being collected.
    assert await collect(node, known={(CONTAINER_ID, "eth0")})
    assert node.held() == []


@pytest.mark.parametrize("conf", [{"version": "1.0.0"}, {"version": "1.1.0", "disableGC": True}])
async def test_networks_that_have_no_gc_are_left_alone(node: Node, conf: dict[str, Any]) -> None:
    node.configure(**conf)
    (node.leases("first") / "lost-eth0").touch()
    assert not await collect(node)
    assert not await node.cni.collect_garbage("unheard-of", valid=list, known=list)
    assert node.calls() == []


@pytest.mark.parametrize("readable", [True, False])
async def test_nothing_is_collected_where_another_runtime_has_attachments(
    node: Node, *, readable: bool
) -> None:
    node.configure(version="1.1.0")
    await node.cni.add(node.attachment())
    foreign = node.cache_dir / "pods-feed00-eth0"
    entry = {
        "kind": "cniCacheV1",
        "containerId": "feed00",
        "config": "e30=",
        "ifName": "eth0",
        "networkName": "pods",
        "netns": "/var/run/netns/cni-1",
        "result": {"cniVersion": "1.0.0"},
    }
    foreign.write_text(json.dumps(entry) if readable else "of a later format")
    elsewhere = node.cache_dir / "storage-feed00-eth1"
    elsewhere.write_text(json.dumps({**entry, "networkName": "storage", "ifName": "eth1"}))
    (node.leases("first") / "feed00-eth0").touch()
    before = {file: file.read_bytes() for file in node.cache_dir.iterdir()}
    with pytest.raises(WrongStateError, match=r"another runtime .*feed00.*disableGC"):
        await collect(node, (CONTAINER_ID, "eth0"))
    assert "GC first" not in node.order()
    assert {file: file.read_bytes() for file in node.cache_dir.iterdir()} == before
    # Nor does our DEL touch what is theirs.
    await node.cni.delete(node.attachment())
    assert {file.name for file in node.cache_dir.iterdir()} == {foreign.name, elsewhere.name}
    assert [lease.name for lease in node.leases("first").iterdir()] == ["feed00-eth0"]


async def test_garbage_is_never_collected_beside_an_add(node: Node) -> None:
    node.configure(version="1.1.0")
    node.script("second", ADD={"delay": 0.2})
    adding = asyncio.ensure_future(node.cni.add(node.attachment()))
    await until(lambda: node.held() == ["first"])
    assert await collect(node, (CONTAINER_ID, "eth0"))
    assert node.order() == [*CHAIN_ADD, "GC first", "GC second"]
    await adding
    assert node.held() == ["first", "second"]


# --- loopback ----------------------------------------------------------------------------------------------------


async def test_the_loopback_plugin_is_a_network_of_its_own_where_it_is_wanted(
    node: Node, reaper: Reaper
) -> None:
    assert node.cni.loopback is None
    install_plugin(node.root / "bin", "loopback")
    cni = make_cni(node.root, reaper, loopback_plugin=True)
    assert cni.loopback is not None
    assert cni.loopback.name not in cni.networks
    attachment = node.attachment(network=cni.loopback.name, ifname="lo")
    await cni.add(attachment)
    assert cni.attachments(CONTAINER_ID) == (attachment,)
    await cni.delete(attachment)
    assert cni.attachments(CONTAINER_ID) == ()
