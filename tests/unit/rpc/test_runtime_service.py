"""The RPCs of RuntimeService through a real server, in both versions of the API."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

import cri_shim
from cri_shim._pb.cri.v1 import api_pb2 as v1
from cri_shim._pb.cri.v1alpha2 import api_pb2 as v1alpha2
from cri_shim.host.cgroups.usage import CgroupStats
from cri_shim.rpc.runtime_service import Condition, NodeStatus
from cri_shim.rpc.translate_events import MAX_EVENT_BYTES
from cri_shim.sandbox.container_events import MAX_WAITING
from cri_shim.sandbox.pod_stats import PodUsage
from cri_shim.sandbox.stats import ContainerUsage
from tests.fakes.clock import turn_over, until
from tests.fakes.metrics import sample
from tests.unit.rpc.fakes import (
    CREATED_AT_NS,
    Clients,
    Daemon,
    failure_of,
    make_container,
    make_sandbox,
    serving,
)
from tests.unit.sandbox.cri_metrics.readings import container_reading, pod_reading

pytestmark = pytest.mark.asyncio
META = v1.PodSandboxMetadata(name="web", namespace="default", uid="u1")


def pod_config(api: Any) -> Any:
    return api.PodSandboxConfig(
        metadata=api.PodSandboxMetadata(name="web", namespace="default", uid="u1", attempt=2),
        labels={"app": "web"},
    )


def container_config(api: Any, value: Any) -> Any:
    return api.ContainerConfig(
        metadata=api.ContainerMetadata(name="app"),
        image=api.ImageSpec(image="busybox:1"),
        envs=[api.KeyValue(key="GREETING", value=value)],
    )


@pytest.mark.parametrize(
    ("api", "stub", "value"),
    [(v1, "runtime", b"caf\xc3\xa9\xff"), (v1alpha2, "old_runtime", "café")],
    ids=["v1", "v1alpha2"],
)
async def test_a_pod_lives_its_whole_life_in_either_version(
    tmp_path: Path, api: Any, stub: str, value: Any
) -> None:
    async with serving(tmp_path) as (daemon, clients):
        runtime = getattr(clients, stub)
        config = pod_config(api)
        run = await runtime.RunPodSandbox(
            api.RunPodSandboxRequest(config=config, runtime_handler="runc")
        )
        sandbox_id = run.pod_sandbox_id
        created = await runtime.CreateContainer(
            api.CreateContainerRequest(
                pod_sandbox_id=sandbox_id,
                config=container_config(api, value),
                sandbox_config=config,
            )
        )
        container_id = created.container_id
        await runtime.StartContainer(api.StartContainerRequest(container_id=container_id))
        listed = await runtime.ListContainers(api.ListContainersRequest())
        assert [c.state for c in listed.containers] == [api.CONTAINER_RUNNING]
        answer = await runtime.ExecSync(
            api.ExecSyncRequest(container_id=container_id, cmd=["ls", "/"], timeout=5)
        )
        assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out", b"err\xff", 3)
        await runtime.ReopenContainerLog(api.ReopenContainerLogRequest(container_id=container_id))
        await runtime.StopContainer(api.StopContainerRequest(container_id=container_id, timeout=9))
        status = await runtime.ContainerStatus(
            api.ContainerStatusRequest(container_id=container_id)
        )
        assert status.status.exit_code == 137
        await runtime.RemoveContainer(api.RemoveContainerRequest(container_id=container_id))
        if api is v1:
            resources = v1.LinuxContainerResources(cpu_shares=9)
            await runtime.UpdatePodSandboxResources(
                v1.UpdatePodSandboxResourcesRequest(pod_sandbox_id=sandbox_id, resources=resources)
            )
            assert daemon.pods.calls.pop()[::3] == ("resize", resources)
        await runtime.StopPodSandbox(api.StopPodSandboxRequest(pod_sandbox_id=sandbox_id))
        await runtime.RemovePodSandbox(api.RemovePodSandboxRequest(pod_sandbox_id=sandbox_id))
        assert not (await runtime.ListPodSandbox(api.ListPodSandboxRequest())).items

    env = daemon.containers.calls[0][2].envs[0]
    assert env.value == (value.encode() if isinstance(value, str) else value)
    assert [call[0] for call in daemon.containers.calls] == [
        *("create", "start", "exec", "reopen", "stop", "remove"),
    ]
    assert ("exec", container_id, ["ls", "/"], 5) in daemon.containers.calls
    assert ("stop", container_id, 9) in daemon.containers.calls
    assert [call[0] for call in daemon.pods.calls] == ["run", "stop", "remove"]
    assert daemon.pods.calls[0][2] == "runc"


async def test_version_names_the_api_that_was_asked(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, clients):
        new = await clients.runtime.Version(v1.VersionRequest(version="0.1.0"))
        old = await clients.old_runtime.Version(v1alpha2.VersionRequest(version="0.1.0"))
    assert (new.version, new.runtime_name, new.runtime_version, new.runtime_api_version) == (
        *("0.1.0", "cri-shim", cri_shim.__version__, "v1"),
    )
    assert old.runtime_api_version == "v1alpha2"


async def test_status_tells_conditions_handlers_and_documents(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, clients):
        brief = await clients.runtime.Status(v1.StatusRequest())
        verbose = await clients.runtime.Status(v1.StatusRequest(verbose=True))
    conditions = {c.type: (c.status, c.reason, c.message) for c in brief.status.conditions}
    assert conditions == {
        "RuntimeReady": (True, "", ""),
        "NetworkReady": (False, "NoNetwork", "no configuration in /etc"),
    }
    # The default handler is also what a pod without a RuntimeClass asks for.
    assert [(h.name, h.features.recursive_read_only_mounts) for h in brief.runtime_handlers] == [
        *(("", True), ("runc", True), ("crun", False)),
    ]
    assert [h.features.user_namespaces for h in brief.runtime_handlers] == [True, True, False]
    assert brief.features.supplemental_groups_policy
    assert brief.features.user_namespaces_host_network
    assert brief.features.mount_options
    assert not brief.info
    assert json.loads(verbose.info["config"]) == {"root": "/var/lib/cri-shim"}


async def test_status_of_a_node_without_handlers_lists_none(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        daemon.node.answer = NodeStatus(
            runtime=Condition(ok=False, reason="NoRuntime", message="m"), network=Condition(ok=True)
        )
        status = await clients.runtime.Status(v1.StatusRequest())
    assert not status.runtime_handlers


@pytest.mark.parametrize(("systemd", "driver"), [(True, v1.SYSTEMD), (False, v1.CGROUPFS)])
async def test_runtime_config_tells_the_cgroup_driver(
    tmp_path: Path, systemd: bool, driver: int
) -> None:
    async with serving(tmp_path) as (daemon, clients):
        daemon.node.systemd = systemd
        config = await clients.runtime.RuntimeConfig(v1.RuntimeConfigRequest())
    assert config.linux.cgroup_driver == driver


async def test_update_runtime_config_tells_the_node_its_pod_addresses(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        await clients.runtime.UpdateRuntimeConfig(
            v1.UpdateRuntimeConfigRequest(
                runtime_config=v1.RuntimeConfig(
                    network_config=v1.NetworkConfig(pod_cidr="10.1.0.0/24")
                )
            )
        )
    assert daemon.node.pod_cidrs == ["10.1.0.0/24"]


META = v1.PodSandboxMetadata(name="n", namespace="ns", uid="u")


@pytest.mark.parametrize(
    ("rpc", "request_", "field"),
    [
        ("RunPodSandbox", v1.RunPodSandboxRequest(), "config"),
        (
            "RunPodSandbox",
            v1.RunPodSandboxRequest(config=v1.PodSandboxConfig(hostname="h")),
            "config.metadata",
        ),
        (
            "RunPodSandbox",
            v1.RunPodSandboxRequest(
                config=v1.PodSandboxConfig(metadata=v1.PodSandboxMetadata(name="n", uid="u"))
            ),
            "config.metadata.namespace",
        ),
        ("StopPodSandbox", v1.StopPodSandboxRequest(), "pod_sandbox_id"),
        ("RemovePodSandbox", v1.RemovePodSandboxRequest(), "pod_sandbox_id"),
        ("UpdatePodSandboxResources", v1.UpdatePodSandboxResourcesRequest(), "pod_sandbox_id"),
        ("PodSandboxStatus", v1.PodSandboxStatusRequest(), "pod_sandbox_id"),
        ("CreateContainer", v1.CreateContainerRequest(), "pod_sandbox_id"),
        ("CreateContainer", v1.CreateContainerRequest(pod_sandbox_id="1"), "config"),
        (
            "CreateContainer",
            v1.CreateContainerRequest(
                pod_sandbox_id="1",
                config=v1.ContainerConfig(metadata=v1.ContainerMetadata(name="n")),
            ),
            "config.image",
        ),
        ("StartContainer", v1.StartContainerRequest(), "container_id"),
        ("StopContainer", v1.StopContainerRequest(timeout=3), "container_id"),
        ("RemoveContainer", v1.RemoveContainerRequest(), "container_id"),
        ("ContainerStatus", v1.ContainerStatusRequest(), "container_id"),
        ("UpdateContainerResources", v1.UpdateContainerResourcesRequest(), "container_id"),
        ("ContainerStats", v1.ContainerStatsRequest(), "container_id"),
        ("PodSandboxStats", v1.PodSandboxStatsRequest(), "pod_sandbox_id"),
        ("ReopenContainerLog", v1.ReopenContainerLogRequest(), "container_id"),
        ("ExecSync", v1.ExecSyncRequest(cmd=["ls"]), "container_id"),
        ("ExecSync", v1.ExecSyncRequest(container_id="1"), "cmd"),
        ("Exec", v1.ExecRequest(cmd=["ls"]), "container_id"),
        ("Exec", v1.ExecRequest(container_id="1"), "cmd"),
        ("Attach", v1.AttachRequest(), "container_id"),
        ("PortForward", v1.PortForwardRequest(), "pod_sandbox_id"),
    ],
)
async def test_a_missing_field_is_named(
    tmp_path: Path, rpc: str, request_: Any, field: str
) -> None:
    async with serving(tmp_path) as (daemon, clients):
        failure = await failure_of(getattr(clients.runtime, rpc)(request_))
        assert not daemon.pods.calls
        assert not daemon.containers.calls
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f": {field} is required" in (failure.details() or "")


async def test_an_unknown_id_is_not_found_and_named(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, clients):
        failure = await failure_of(
            clients.runtime.ContainerStatus(v1.ContainerStatusRequest(container_id="abc"))
        )
    assert failure.code() is grpc.StatusCode.NOT_FOUND
    assert failure.details() == "container 'abc' not found"


@pytest.mark.parametrize(("sent", "passed"), [(-1, 0), (0, 0), (30, 30), (1 << 62, 1 << 31)])
async def test_a_grace_period_is_kept_within_bounds(tmp_path: Path, sent: int, passed: int) -> None:
    async with serving(tmp_path) as (daemon, clients):
        daemon.containers.containers = [make_container("a" * 64)]
        await clients.runtime.StopContainer(
            v1.StopContainerRequest(container_id="a" * 64, timeout=sent)
        )
        assert daemon.containers.calls == [("stop", "a" * 64, passed)]


async def test_a_negative_exec_timeout_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, clients):
        failure = await failure_of(
            clients.runtime.ExecSync(v1.ExecSyncRequest(container_id="a", cmd=["true"], timeout=-1))
        )
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "timeout is -1 s" in (failure.details() or "")


async def test_streams_are_asked_for_as_the_request_has_it_and_answered_with_a_url(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as (daemon, clients):
        exec_ = await clients.runtime.Exec(
            v1.ExecRequest(container_id="a", cmd=["sh", "-c"], tty=True, stdin=True, stdout=True)
        )
        attach = await clients.runtime.Attach(
            v1.AttachRequest(container_id="a", stdout=True, stderr=True)
        )
        forward = await clients.runtime.PortForward(
            v1.PortForwardRequest(pod_sandbox_id="p", port=[80, 443])
        )
    assert exec_.url == "http://node/exec/1"
    assert attach.url == "http://node/attach/1"
    assert forward.url == "http://node/portforward/1"
    assert daemon.streams.asked == [
        ("exec", "a", ["sh", "-c"], True, True, False, True),
        ("attach", "a", False, True, True, False),
        ("port_forward", "p", [80, 443]),
    ]


async def test_a_sandbox_status_brings_its_containers_newest_first_and_a_document(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as (daemon, clients):
        daemon.pods.sandboxes = [make_sandbox("a" * 64), make_sandbox("b" * 64)]
        daemon.containers.containers = [
            make_container("1" * 64, "a" * 64),
            make_container("2" * 64, "b" * 64),
            make_container("3" * 64, "a" * 64),
        ]
        before_ns = time.time_ns()
        answer = await clients.runtime.PodSandboxStatus(
            v1.PodSandboxStatusRequest(pod_sandbox_id="aaaa", verbose=True)
        )
    assert answer.status.id == "a" * 64
    assert [c.id for c in answer.containers_statuses] == ["3" * 64, "1" * 64], "newest first"
    assert before_ns <= answer.timestamp <= time.time_ns()
    assert json.loads(answer.info["info"]) == {"pid": 42, "root": "/x"}


async def test_a_sandbox_status_has_no_time_for_kubelets_that_get_no_events(tmp_path: Path) -> None:
    async with serving(tmp_path, events=False) as (daemon, clients):
        daemon.pods.sandboxes = [make_sandbox("a" * 64)]
        answer = await clients.runtime.PodSandboxStatus(
            v1.PodSandboxStatusRequest(pod_sandbox_id="aaaa")
        )
    assert answer.timestamp == 0


async def test_a_container_status_brings_its_document_only_when_asked(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        daemon.containers.containers = [make_container("1" * 64)]
        request = v1.ContainerStatusRequest(container_id="11")
        assert not (await clients.runtime.ContainerStatus(request)).info
        request.verbose = True
        verbose = await clients.runtime.ContainerStatus(request)
    assert json.loads(verbose.info["info"]) == {"pid": 43}


async def test_status_and_document_are_of_one_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as (daemon, clients):
        daemon.pods.sandboxes = [make_sandbox("a" * 64)]
        daemon.containers.containers = [make_container("1" * 64, "a" * 64)]

        async def starts_meanwhile(item: object) -> dict[str, object]:
            if daemon.containers.containers[0].status.started_at_ns == 0:
                await daemon.containers.start_container("1" * 64)
            return {}

        monkeypatch.setattr(daemon.pods, "verbose_info", starts_meanwhile)
        pod = await clients.runtime.PodSandboxStatus(
            v1.PodSandboxStatusRequest(pod_sandbox_id="a", verbose=True)
        )
        daemon.containers.containers = [make_container("1" * 64)]
        monkeypatch.setattr(daemon.containers, "verbose_info", starts_meanwhile)
        container = await clients.runtime.ContainerStatus(
            v1.ContainerStatusRequest(container_id="1", verbose=True)
        )
    assert [each.state for each in pod.containers_statuses] == [v1.CONTAINER_RUNNING]
    assert container.status.state == v1.CONTAINER_RUNNING
    assert (pod.info["info"], container.info["info"]) == ("{}", "{}")


async def test_lists_are_filtered(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        await _fill(daemon)
        pods = await clients.runtime.ListPodSandbox(
            v1.ListPodSandboxRequest(filter=v1.PodSandboxFilter(id="bb"))
        )
        containers = await clients.runtime.ListContainers(
            v1.ListContainersRequest(filter=v1.ContainerFilter(pod_sandbox_id="a" * 64))
        )
        stats = await _stats(clients, v1.ContainerStatsFilter(id="2"))
    assert [s.id for s in pods.items] == ["b" * 64]
    assert [c.id for c in containers.containers] == ["1" * 64]
    assert [s.attributes.id for s in stats] == ["2" * 64]
    assert stats[0].writable_layer.fs_id.mountpoint == "/var/lib/cri-shim"


async def test_streamed_lists_are_the_same_in_pieces(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        await _fill(daemon)
        runtime = clients.runtime
        pods = [
            pod.id
            async for piece in runtime.StreamPodSandboxes(v1.StreamPodSandboxesRequest())
            for pod in piece.pod_sandboxes
        ]
        containers = [
            container.id
            async for piece in runtime.StreamContainers(
                v1.StreamContainersRequest(filter=v1.ContainerFilter(pod_sandbox_id="b" * 64))
            )
            for container in piece.containers
        ]
        stats = [
            usage
            async for piece in runtime.StreamContainerStats(
                v1.StreamContainerStatsRequest(filter=v1.ContainerStatsFilter(id="1"))
            )
            for usage in piece.container_stats
        ]
        daemon.pods.sandboxes = []
        none = [piece async for piece in runtime.StreamPodSandboxes(v1.StreamPodSandboxesRequest())]
    assert pods == ["a" * 64, "b" * 64]
    assert containers == ["2" * 64]
    assert [usage.cpu.usage_core_nano_seconds.value for usage in stats] == [77]
    assert none == []


async def test_stats_of_one_container(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        await _fill(daemon)
        answer = await clients.runtime.ContainerStats(v1.ContainerStatsRequest(container_id="1"))
        daemon.stats.usages.clear()
        gone = await failure_of(
            clients.runtime.ContainerStats(v1.ContainerStatsRequest(container_id="1"))
        )
    assert answer.stats.cpu.usage_core_nano_seconds.value == 77
    assert gone.code() is grpc.StatusCode.NOT_FOUND


async def test_stats_of_pods_are_filtered_and_come_in_pieces_too(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        await _fill(daemon)
        runtime = clients.runtime
        listed = [
            [
                stats.attributes.id[0]
                for stats in (
                    await runtime.ListPodSandboxStats(
                        v1.ListPodSandboxStatsRequest(filter=v1.PodSandboxStatsFilter(**filter_))
                    )
                ).stats
            ]
            for filter_ in ({}, {"id": "bb"}, {"label_selector": {"app": "db"}})
        ]
        streamed = [
            stats
            async for piece in runtime.StreamPodSandboxStats(
                v1.StreamPodSandboxStatsRequest(filter=v1.PodSandboxStatsFilter(id="a"))
            )
            for stats in piece.pod_sandbox_stats
        ]
        old = await clients.old_runtime.ListPodSandboxStats(v1alpha2.ListPodSandboxStatsRequest())
    assert listed == [["a", "b"], ["b"], []]
    [stats] = streamed
    assert stats.linux.cpu.usage_core_nano_seconds.value == 99
    [container] = stats.linux.containers
    assert container.writable_layer.fs_id.mountpoint == "/var/lib/cri-shim"
    assert [each.linux.cpu.usage_core_nano_seconds.value for each in old.stats] == [99, 99]


async def test_stats_of_one_pod(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        await _fill(daemon)
        runtime = clients.runtime
        answer = await runtime.PodSandboxStats(v1.PodSandboxStatsRequest(pod_sandbox_id="a"))
        daemon.pod_stats.usages.clear()
        stopped = await failure_of(
            runtime.PodSandboxStats(v1.PodSandboxStatsRequest(pod_sandbox_id="a"))
        )
    assert answer.stats.attributes.id == "a" * 64
    assert answer.stats.linux.cpu.usage_core_nano_seconds.value == 99
    assert stopped.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "a" * 64 in (stopped.details() or "")


async def test_metrics_are_listed_and_streamed(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        daemon.pods.sandboxes = [make_sandbox()]
        daemon.pod_metrics.readings = {"5" * 64: pod_reading(container_reading())}
        runtime = clients.runtime
        known = await runtime.ListMetricDescriptors(v1.ListMetricDescriptorsRequest())
        listed = await runtime.ListPodSandboxMetrics(v1.ListPodSandboxMetricsRequest())
        streamed = [
            pod
            async for piece in runtime.StreamPodSandboxMetrics(v1.StreamPodSandboxMetricsRequest())
            for pod in piece.pod_sandbox_metrics
        ]
    assert len(known.descriptors) == 56
    [pod] = listed.pod_metrics
    assert streamed == [pod]
    names = {each.name for each in (*pod.metrics, *pod.container_metrics[0].metrics)}
    assert names == {each.name for each in known.descriptors}


async def test_metrics_that_are_off_are_not_implemented(tmp_path: Path) -> None:
    """A kubelet takes cAdvisor's then."""
    async with serving(tmp_path) as (daemon, clients):
        daemon.pod_metrics.container_families = daemon.pod_metrics.pod_families = ()
        runtime = clients.runtime
        for call in (
            runtime.ListMetricDescriptors(v1.ListMetricDescriptorsRequest()),
            runtime.ListPodSandboxMetrics(v1.ListPodSandboxMetricsRequest()),
        ):
            failure = await failure_of(call)
            assert failure.code() is grpc.StatusCode.UNIMPLEMENTED
            assert "stats.metrics" in (failure.details() or "")


async def _fill(daemon: Daemon) -> None:
    daemon.pods.sandboxes = [make_sandbox("a" * 64), make_sandbox("b" * 64)]
    daemon.containers.containers = [
        make_container("1" * 64, "a" * 64),
        make_container("2" * 64, "b" * 64),
    ]
    for container in daemon.containers.containers:
        daemon.stats.usages[container.id] = ContainerUsage(
            container=container,
            cgroup=CgroupStats(read_at_ns=5, cpu_usage_ns=77),
            cpu_nano_cores=None,
            writable_layer=Path("/x/upper"),
            layer_read_at_ns=6,
            layer_bytes=100,
            layer_inodes=2,
        )
        sandbox = daemon.pods.find(container.sandbox_id)
        daemon.pod_stats.usages[sandbox.id] = PodUsage(
            sandbox=sandbox,
            cgroup=CgroupStats(read_at_ns=5, cpu_usage_ns=99),
            cpu_nano_cores=None,
            network=None,
            containers=[daemon.stats.usages[container.id]],
        )


async def _stats(clients: Clients, filter_: v1.ContainerStatsFilter) -> Any:
    answer = await clients.runtime.ListContainerStats(v1.ListContainerStatsRequest(filter=filter_))
    return answer.stats


async def test_new_limits_are_passed_on_and_those_of_another_system_refused(tmp_path: Path) -> None:
    limits = v1.LinuxContainerResources(cpu_shares=7)
    async with serving(tmp_path) as (daemon, clients):
        daemon.containers.containers = [make_container("a" * 64)]
        await clients.runtime.UpdateContainerResources(
            v1.UpdateContainerResourcesRequest(
                container_id="a" * 64, linux=limits, annotations={"k": "v"}
            )
        )
        assert daemon.containers.calls == [("update resources", "a" * 64, limits, {"k": "v"})]
        request = v1.UpdateContainerResourcesRequest(container_id="a" * 64)
        request.windows.SetInParent()
        failure = await failure_of(clients.runtime.UpdateContainerResources(request))
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT


# --- events ------------------------------------------------------------------------------------------------------


async def events_from_now_on(daemon: Daemon, clients: Clients) -> Any:
    """A stream of events that has begun."""
    before = len(daemon.events.subscriptions)
    stream = clients.runtime.GetContainerEvents(v1.GetEventsRequest())
    await until(lambda: len(daemon.events.subscriptions) > before)
    return stream


def exits_of(daemon: Daemon, count: int) -> None:
    """So many containers of one pod come, run and go: three events each, of more than 10 kB."""
    config = v1.PodSandboxConfig(metadata=META, annotations={"long": "x" * 10_000})
    daemon.sandbox_store.adopt(make_sandbox(config=config))
    for number in range(count):
        container = make_container(f"{number:064x}")
        daemon.container_store.adopt(container)
        daemon.container_store.note(container, container.status.started(1))
        daemon.container_store.note(container, container.status.exited(2, 3, reason="Error"))
        daemon.container_store.forget(container)


async def test_events_come_in_order_with_statuses_to_every_subscriber(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        streams = [await events_from_now_on(daemon, clients) for _ in range(3)]
        daemon.sandbox_store.adopt(make_sandbox())
        container = make_container()
        daemon.container_store.adopt(container)
        told = []
        for status in (
            container.status.started(CREATED_AT_NS + 2),
            container.status.started(CREATED_AT_NS + 2).exited(
                CREATED_AT_NS + 3, 4, reason="Error"
            ),
        ):
            daemon.container_store.note(container, status)
            told.append([await stream.read() for stream in streams])
    for of_each in told:
        assert of_each[0] == of_each[1] == of_each[2]
    started, stopped = (of_each[0] for of_each in told)
    assert started.container_event_type == v1.CONTAINER_STARTED_EVENT
    assert started.pod_sandbox_status.metadata.uid == "u1"
    assert [c.state for c in started.containers_statuses] == [v1.CONTAINER_RUNNING]
    assert stopped.container_event_type == v1.CONTAINER_STOPPED_EVENT
    assert [(c.id, c.exit_code) for c in stopped.containers_statuses] == [(container.id, 4)]
    assert started.created_at <= stopped.created_at


async def test_a_subscriber_that_does_not_read_holds_up_nobody_and_is_told(tmp_path: Path) -> None:
    overflows = sample("cri_shim_container_event_overflows_total")
    async with serving(tmp_path) as (daemon, clients), daemon.channel() as other_channel:
        idle = await events_from_now_on(daemon, Clients(other_channel))
        reading = await events_from_now_on(daemon, clients)
        for _ in range(2 * MAX_WAITING // 192 + 1):
            exits_of(daemon, 64)
            for _ in range(3 * 64):
                await reading.read()
        assert sample("cri_shim_container_event_overflows_total") == overflows + 1
        assert len(daemon.events.subscriptions) == 1
        failure = await failure_of(_to_the_end(idle))
    assert failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "subscribe again" in (failure.details() or "")


async def test_a_subscriber_that_vanishes_while_it_is_written_to_is_no_error_of_ours(
    tmp_path: Path,
) -> None:
    labels = {"service": "runtime.v1.RuntimeService", "method": "GetContainerEvents"}
    ended = "cri_shim_grpc_requests_total"
    cancelled = sample(ended, **labels, code="CANCELLED")
    with capture_logs() as logs:
        async with serving(tmp_path) as (daemon, _):
            async with daemon.channel() as channel:
                idle = await events_from_now_on(daemon, Clients(channel))
                exits_of(daemon, 1000)  # 30 MB
                (subscription,) = daemon.events.subscriptions
                before, stands = 0, 0
                while stands < 50:  # until gRPC takes nothing more
                    before, stands = (
                        subscription.waiting,
                        stands + 1 if subscription.waiting == before else 0,
                    )
                    await turn_over()
                assert not idle.done()
            await until(lambda: sample(ended, **labels, code="CANCELLED") == cancelled + 1)
    assert not [line for line in logs if line["log_level"] == "error"]


async def test_a_subscriber_that_leaves_costs_nothing_any_more(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        leaving = await events_from_now_on(daemon, clients)
        staying = await events_from_now_on(daemon, clients)
        leaving.cancel()
        await until(lambda: len(daemon.events.subscriptions) == 1)
        exits_of(daemon, 1)
        assert (await staying.read()).container_id == "0" * 64


async def test_a_stop_ends_streams_after_their_events_and_waits_for_no_client(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as (daemon, clients), daemon.channel() as other_channel:
        idle = await events_from_now_on(daemon, Clients(other_channel))
        exits_of(daemon, 1000)
        reading = await events_from_now_on(daemon, clients)
        exits_of(daemon, 1)
        daemon.events.close()
        assert [(await reading.read()).container_event_type for _ in range(3)] == [1, 2, 3]
        failure = await failure_of(reading.read())
        late = await failure_of(
            _to_the_end(clients.runtime.GetContainerEvents(v1.GetEventsRequest()))
        )
        assert await daemon.listeners.stop(3600) == 0, "a stream is no call that a stop waits for"
        await failure_of(_to_the_end(idle))
    assert failure.code() is late.code() is grpc.StatusCode.UNAVAILABLE
    assert "stopping" in (failure.details() or "")


async def test_during_recovery_a_subscriber_waits_and_is_then_told_to_list(tmp_path: Path) -> None:
    async with serving(tmp_path, is_ready=False) as (daemon, clients):
        stream = clients.runtime.GetContainerEvents(v1.GetEventsRequest())
        await clients.runtime.Version(v1.VersionRequest())
        await turn_over()
        assert not stream.done()
        daemon.events.open()
        failure = await failure_of(_to_the_end(stream))
    assert failure.code() is grpc.StatusCode.UNAVAILABLE
    assert "list pods and containers, and subscribe again" in (failure.details() or "")


async def test_events_that_are_off_are_not_implemented(tmp_path: Path) -> None:
    async with serving(tmp_path, events=False) as (_, clients):
        failure = await failure_of(
            _to_the_end(clients.runtime.GetContainerEvents(v1.GetEventsRequest()))
        )
    assert failure.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "events.enabled" in (failure.details() or "")


async def test_an_event_that_is_too_large_is_left_out_and_the_stream_goes_on(
    tmp_path: Path,
) -> None:
    too_large = sample("cri_shim_container_events_too_large_total")
    async with serving(tmp_path) as (daemon, clients):
        stream = await events_from_now_on(daemon, clients)
        daemon.sandbox_store.adopt(make_sandbox())
        container = make_container(
            config=v1.ContainerConfig(
                metadata=v1.ContainerMetadata(name="app"),
                mounts=[v1.Mount(host_path="x" * MAX_EVENT_BYTES)],
            )
        )
        daemon.container_store.adopt(container)
        daemon.container_store.note(container, container.status.started(1))
        await until(lambda: sample("cri_shim_container_events_too_large_total") == too_large + 1)
        daemon.container_store.forget(container)
        event = await stream.read()
    assert event.container_event_type == v1.CONTAINER_DELETED_EVENT
    assert not event.containers_statuses


async def _to_the_end(stream: Any) -> None:
    async for _ in stream:
        pass
