"""A pod's networks: planned once, attached in order, detached until nothing is left to detach."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import (
    AlreadyExistsError,
    CniPluginError,
    InvalidArgumentError,
    NotReadyError,
)
from cri_shim.paths import netns_file
from cri_shim.sandbox.network import host_ports as host_ports_module
from cri_shim.sandbox.network import pod_network as network_module
from cri_shim.sandbox.network.annotations import CNI_ARGS_PREFIX, DISABLE_DEFAULT, NETWORKS
from cri_shim.sandbox.network.bandwidth import INGRESS
from cri_shim.sandbox.network.pod_network import has_host_network
from cri_shim.sandbox.store.model import NetworkAttachment, PodMetadata, SandboxStatus
from tests.fakes.clock import until
from tests.fakes.networks import FakeCni
from tests.fakes.node_harness import NodeHarness, pod_config
from tests.unit.sandbox.interruptions import outcome_of
from tests.unit.sandbox.records import make_sandbox

if TYPE_CHECKING:
    from cri_shim.sandbox.network.host_ports import HostPort
    from cri_shim.sandbox.store.store import Sandbox
    from tests.fakes.clock import MovableClock

METADATA = PodMetadata("web", "default", "uid-web", 0)
TWO = (NetworkAttachment("pods", "eth0"), NetworkAttachment("storage", "net1"))


@pytest_asyncio.fixture
async def joined(harness: NodeHarness) -> NodeHarness:
    """A harness with two networks."""
    harness.cni = FakeCni(harness.points, "pods", "storage")
    harness.rebuild()
    return harness


def stored(harness: NodeHarness) -> Sandbox:
    sandbox = make_sandbox(status=SandboxStatus(attachments=TWO))
    harness.sandboxes.create(sandbox)
    return sandbox


@pytest.mark.asyncio
async def test_a_pod_joins_the_default_network(joined: NodeHarness) -> None:
    assert joined.network.plan("a" * 64, METADATA, pod_config()).attachments == (
        NetworkAttachment("pods", "eth0"),
    )


@pytest.mark.asyncio
async def test_a_pod_on_the_nodes_network_joins_none_and_needs_none(joined: NodeHarness) -> None:
    joined.cni.ready = False
    assert joined.network.plan("a" * 64, METADATA, pod_config(host_network=True)).attachments == ()
    with pytest.raises(NotReadyError):
        joined.network.plan("a" * 64, METADATA, pod_config())


@pytest.mark.asyncio
@pytest.mark.parametrize("field", ["name", "namespace", "uid"])
async def test_a_pod_that_no_plugin_could_be_told_of_is_refused_beforehand(
    joined: NodeHarness, field: str
) -> None:
    words = {"name": "n", "namespace": "s", "uid": "u", field: "x;IgnoreUnknown=0"}
    with pytest.raises(InvalidArgumentError, match="CNI argument"):
        joined.network.plan("a" * 64, PodMetadata(**words, attempt=0), pod_config())


@pytest.mark.asyncio
async def test_networks_are_attached_in_order_and_told_who_the_pod_is(joined: NodeHarness) -> None:
    sandbox = stored(joined)
    await joined.network.create_namespace(sandbox.id, {"net.ipv4.ip_forward": "1"})
    assert await joined.network.attach(sandbox) == ("10.0.0.2",)
    first, second = joined.cni.attached.values()
    assert (first.ifname, second.ifname) == ("eth0", "net1")
    assert first.netns == str(netns_file(sandbox.id))
    assert first.args["K8S_POD_NAME"] == "web"
    assert first.args["K8S_POD_NAMESPACE"] == "default"
    assert first.args["K8S_POD_INFRA_CONTAINER_ID"] == sandbox.id
    assert first.args["K8S_POD_UID"] == "uid-web"


@pytest.mark.asyncio
async def test_the_pods_addresses_are_those_of_its_first_network_in_the_plugins_order(
    joined: NodeHarness,
) -> None:
    joined.cni.addresses["pods"] = "fd00::2/64 10.0.0.2/24"
    sandbox = stored(joined)
    await joined.network.create_namespace(sandbox.id, {})
    assert await joined.network.attach(sandbox) == ("fd00::2", "10.0.0.2")


@pytest.mark.asyncio
async def test_the_loopback_network_comes_first_and_has_no_address_of_the_pod(
    joined: NodeHarness,
) -> None:
    joined.cni.loopback = joined.cni.networks["storage"]
    joined.cni.addresses["storage"] = "127.0.0.1/8"
    planned = joined.network.plan("5" * 64, METADATA, pod_config()).attachments
    assert [a.ifname for a in planned] == ["lo", "eth0"]
    sandbox = make_sandbox(status=SandboxStatus(attachments=planned))
    await joined.network.create_namespace(sandbox.id, {})
    assert await joined.network.attach(sandbox) == ("10.0.0.2",)


@pytest.mark.asyncio
async def test_a_pod_joins_the_networks_that_it_names(joined: NodeHarness) -> None:
    config = pod_config()
    config.annotations[NETWORKS] = '[{"name": "storage"}, {"name": "pods", "interface": "more0"}]'
    assert joined.network.plan("a" * 64, METADATA, config).attachments == (
        NetworkAttachment("pods", "eth0"),
        NetworkAttachment("storage", "net1"),
        NetworkAttachment("pods", "more0"),
    )


@pytest.mark.asyncio
async def test_without_the_default_network_a_pod_has_only_those_that_it_names(
    joined: NodeHarness,
) -> None:
    joined.cni.ready = False
    config = pod_config()
    config.annotations[DISABLE_DEFAULT] = "true"
    assert joined.network.plan("a" * 64, METADATA, config).attachments == ()
    config.annotations[NETWORKS] = '{"name": "storage", "interface": "eth0"}'
    assert joined.network.plan("a" * 64, METADATA, config).attachments == (
        NetworkAttachment("storage", "eth0"),
    )


@pytest.mark.asyncio
async def test_a_network_that_the_node_does_not_have_is_refused_under_the_annotations_name(
    harness: NodeHarness,
) -> None:
    config = pod_config()
    config.annotations[NETWORKS] = '{"name": "elsewhere"}'
    before = harness.leftovers()
    with pytest.raises(NotReadyError, match=rf"annotation {NETWORKS}: .*'elsewhere'"):
        await harness.pods.run_pod_sandbox(config, "")
    assert harness.leftovers() == before


@pytest.mark.asyncio
async def test_on_the_nodes_network_annotations_about_networks_say_nothing(
    harness: NodeHarness,
) -> None:
    config = pod_config(host_network=True)
    config.annotations[NETWORKS] = '{"name": "elsewhere"}'
    assert harness.network.plan("a" * 64, METADATA, config).attachments == ()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (NETWORKS, "storage"),
        (DISABLE_DEFAULT, "yes"),
        (f"{CNI_ARGS_PREFIX}a", "IgnoreUnknown=0"),
        (INGRESS, "fast"),
    ],
)
async def test_a_wrong_annotation_is_refused_before_anything_is_made(
    harness: NodeHarness, annotation: str, text: str
) -> None:
    config = pod_config()
    config.annotations[annotation] = text
    before = harness.leftovers()
    with pytest.raises(InvalidArgumentError, match=annotation):
        await harness.pods.run_pod_sandbox(config, "")
    assert harness.leftovers() == before


@pytest.mark.asyncio
async def test_a_second_network_that_fails_takes_the_first_with_it(joined: NodeHarness) -> None:
    config = pod_config()
    config.annotations[NETWORKS] = '{"name": "storage"}'
    before = joined.leftovers()
    joined.cni.refusing["storage"] = CniPluginError("bridge", "ADD", "full")
    with pytest.raises(CniPluginError, match=r"network storage: .*full"):
        await joined.pods.run_pod_sandbox(config, "")
    assert [a.network for a in joined.cni.deleted] == ["storage", "pods"]
    assert joined.leftovers() == before


@pytest.mark.asyncio
async def test_what_the_plugins_made_is_shown_while_it_is_there(joined: NodeHarness) -> None:
    sandbox = stored(joined)
    await joined.network.create_namespace(sandbox.id, {})
    assert [n["attached"] for n in joined.network.describe(sandbox)] == [False, False]
    await joined.network.attach(sandbox)
    first, second = joined.network.describe(sandbox)
    assert (first["network"], first["interface"]) == ("pods", "eth0")
    assert second["interfaces"] == [
        {
            "name": "net1",
            "mac": "02:00:00:00:00:01",
            "ips": [{"address": "10.1.0.2/24", "gateway": ""}],
        }
    ]
    await joined.network.detach(sandbox)
    assert joined.network.describe(sandbox) == []


@pytest.mark.asyncio
async def test_networks_are_detached_last_first_and_forgotten(joined: NodeHarness) -> None:
    sandbox = stored(joined)
    await joined.network.attach(sandbox)
    await joined.network.detach(sandbox)
    assert [a.network for a in joined.cni.deleted] == ["storage", "pods"]
    assert sandbox.status.attachments == ()
    await joined.network.detach(sandbox)
    assert len(joined.cni.deleted) == 2


@pytest.mark.asyncio
async def test_what_was_never_attached_is_detached_all_the_same(joined: NodeHarness) -> None:
    sandbox = stored(joined)
    await joined.network.detach(sandbox)
    assert len(joined.cni.deleted) == 2
    assert joined.cni.deleted[0].netns == ""


@pytest.mark.asyncio
async def test_a_failing_detachment_stops_no_other_and_is_pending(joined: NodeHarness) -> None:
    sandbox = stored(joined)
    await joined.network.attach(sandbox)
    joined.points.fail("cni.del storage", CniPluginError("bridge", "DEL", "busy"))
    await joined.network.detach(sandbox)
    assert sandbox.status.attachments == ()
    [(_, again)] = joined.sandboxes.load()
    # Of what is owed the file speaks no more; of what was left, the caller's next save.
    assert [a.network for a in again.status.attachments] == ["pods"]  # type: ignore[union-attr]
    (pending,) = joined.pending_deletes
    assert (pending.key, pending.pod) == (("storage", sandbox.id, "net1"), "default/web")
    assert "busy" in pending.error
    assert [a.network for a in joined.cni.deleted] == ["pods"]


@pytest.mark.asyncio
async def test_a_port_that_a_former_pod_may_still_have_is_given_with_a_warning(
    harness: NodeHarness,
) -> None:
    first, second = pod_config("first"), pod_config("second")
    for config in (first, second):
        config.port_mappings.add(host_port=80, container_port=8080)
    holder = await harness.pods.run_pod_sandbox(first, "")
    harness.points.fail("cni.del", CniPluginError("portmap", "DEL", "busy"))
    await harness.pods.remove_pod_sandbox(holder)
    harness.points.heal()
    with capture_logs() as said:
        await harness.pods.run_pod_sandbox(second, "")
    (line,) = (line for line in said if line["log_level"] == "warning")
    assert line["former"] == ["default/first"]


@pytest.mark.asyncio
async def test_by_the_id_alone_everything_known_to_be_attached_is_detached(
    joined: NodeHarness,
) -> None:
    sandbox = stored(joined)
    await joined.network.create_namespace(sandbox.id, {})
    await joined.network.attach(sandbox)
    await joined.network.tear_down_by_id(sandbox.id)
    assert joined.cni.attached == {}
    assert joined.kernel.namespaces == {}
    await joined.network.tear_down_by_id(sandbox.id)


# --- port mappings -----------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_port_that_another_pod_has_is_refused_until_that_one_is_gone(
    harness: NodeHarness,
) -> None:
    first, second = pod_config("first"), pod_config("second")
    for config, host_ip in ((first, "127.0.0.1"), (second, "")):
        config.port_mappings.add(host_port=80, container_port=8080, host_ip=host_ip)
    holder = await harness.pods.run_pod_sandbox(first, "")
    before = harness.leftovers()
    with pytest.raises(AlreadyExistsError, match=rf"80/tcp is held by sandbox {holder} .*first"):
        await harness.pods.run_pod_sandbox(second, "")
    assert harness.leftovers() == before
    # What is stopped is detached: its ports are free.
    await harness.pods.stop_pod_sandbox(holder)
    await harness.pods.run_pod_sandbox(second, "")


@pytest.mark.asyncio
async def test_the_ports_of_pods_that_were_there_before_the_daemon_are_known(
    harness: NodeHarness,
) -> None:
    config = pod_config("new")
    config.port_mappings.add(host_port=80, container_port=8080)
    found = make_sandbox(status=SandboxStatus(attachments=TWO), config=config)
    harness.sandboxes.adopt(found)
    harness.rebuild()
    with pytest.raises(AlreadyExistsError, match=found.id):
        harness.network.plan("a" * 64, METADATA, config)
    harness.sandboxes.forget(found)
    assert harness.network.plan("a" * 64, METADATA, config).attachments
    # One that some other version accepted, and this one would not, holds nobody up.
    strange = pod_config("strange")
    strange.port_mappings.add(host_port=80, container_port=0)
    harness.sandboxes.adopt(make_sandbox(status=SandboxStatus(attachments=TWO), config=strange))
    assert harness.network.plan("a" * 64, METADATA, config).attachments


@pytest.mark.asyncio
async def test_a_pod_with_more_host_ports_than_can_be_published_is_refused(
    harness: NodeHarness,
) -> None:
    config = pod_config("greedy")
    for port in range(1, 10_001):
        config.port_mappings.add(host_port=port, container_port=80)
    with pytest.raises(
        InvalidArgumentError, match=r"port_mappings: 10000 host ports: the limit of a pod is \d+"
    ):
        harness.network.plan("a" * 64, METADATA, config)


@pytest.mark.asyncio
async def test_of_two_pods_made_at_once_one_has_the_port(harness: NodeHarness) -> None:
    configs = [pod_config(name) for name in ("first", "second")]
    for config in configs:
        config.port_mappings.add(host_port=80, container_port=8080)
    outcomes = await asyncio.gather(
        *(outcome_of(harness.pods.run_pod_sandbox(config, "")) for config in configs)
    )
    assert [type(outcome) for outcome in outcomes] == [str, AlreadyExistsError]


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["unpublished", "host-network"])
async def test_ports_that_we_do_not_publish_are_nobodys_here(
    harness: NodeHarness, how: str
) -> None:
    harness.publish_ports = how != "unpublished"
    harness.rebuild()
    for name in ("first", "second"):
        config = pod_config(name, host_network=how == "host-network")
        config.port_mappings.add(host_port=80, container_port=8080)
        await harness.pods.run_pod_sandbox(config, "")


def test_only_the_nodes_network_is_the_hosts() -> None:
    assert has_host_network(pod_config(host_network=True))
    assert not has_host_network(pod_config())
    assert not has_host_network(api.PodSandboxConfig())


@pytest.mark.asyncio
async def test_a_detachment_that_hangs_is_waited_for_a_moment_and_called_again_when_it_has_ended(
    joined: NodeHarness, clock: MovableClock
) -> None:
    sandbox = stored(joined)
    await joined.network.attach(sandbox)
    hold = joined.points.hold("cni.del storage")
    detaching = asyncio.ensure_future(joined.network.detach(sandbox))
    await hold.reached.wait()
    await clock.until(detaching.done, within_s=2 * network_module.DEL_PATIENCE_S)
    await detaching
    # The other network's DEL would stand behind it.
    assert {pending.network for pending in joined.pending_deletes} == {"pods", "storage"}
    await joined.reconciler.retry_due()
    assert joined.cni.deleted == []
    hold.release()
    await until(lambda: not joined.network.is_busy(sandbox.id))
    await joined.reconciler.retry_due()
    assert len(joined.pending_deletes) == 0
    assert [a.network for a in joined.cni.deleted].count("storage") == 2
    assert joined.cni.attached == {}


@pytest.mark.asyncio
async def test_a_pods_ports_are_parsed_once(
    joined: NodeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[object] = []
    real = host_ports_module.host_ports

    def note(config: api.PodSandboxConfig) -> dict[HostPort, int]:
        parsed.append(config)
        return real(config)

    monkeypatch.setattr(host_ports_module, "host_ports", note)
    monkeypatch.setattr(network_module, "host_ports", note)
    config = pod_config()
    config.port_mappings.add(host_port=80, container_port=8080)
    sandbox_id = await joined.pods.run_pod_sandbox(config, "")
    await joined.pods.remove_pod_sandbox(sandbox_id)
    assert joined.cni.deleted
    assert parsed == [config]
