"""What every call gets, seen from a client and in the log."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from cri_shim import metrics
from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import CniPluginError, WrongStateError
from cri_shim.log import set_level
from tests.fakes.clock import until
from tests.unit.rpc.fakes import Clients, failure_of, make_sandbox, serving

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping
    from pathlib import Path

pytestmark = pytest.mark.asyncio

RUN = api.RunPodSandboxRequest(
    config=api.PodSandboxConfig(
        metadata=api.PodSandboxMetadata(name="web", namespace="default", uid="u1")
    )
)


@pytest.fixture
def every_level() -> Iterator[None]:
    """Of events that the level leaves out the interceptor makes nothing."""
    set_level("debug")
    yield
    set_level("info")


def ends(logs: list[MutableMapping[str, Any]]) -> list[MutableMapping[str, Any]]:
    return [line for line in logs if line["event"] == "call"]


def sample(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


def raw_call(clients: Clients, path: str, request: bytes) -> Any:
    method: Any = clients.channel.unary_unary(path)
    return method(request)


async def test_a_call_ends_in_one_line_with_what_it_was_about(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with serving(tmp_path) as (_, clients):
            await clients.runtime.RunPodSandbox(RUN)
    (line,) = ends(logs)
    assert line["log_level"] == "info"
    assert (line["rpc"], line["code"], line["pod"]) == ("RunPodSandbox", "OK", "default/web")
    assert line["sandbox_id"] == "0" * 64
    assert line["seconds"] >= 0


@pytest.mark.usefixtures("every_level")
async def test_what_kubelet_asks_all_day_is_quiet_unless_it_fails(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with serving(tmp_path) as (_, clients):
            await clients.runtime.ListPodSandbox(api.ListPodSandboxRequest())
            await clients.runtime.Status(api.StatusRequest())
            await failure_of(
                clients.runtime.PodSandboxStatus(api.PodSandboxStatusRequest(pod_sandbox_id="77"))
            )
    assert [(e["rpc"], e["log_level"]) for e in ends(logs)] == [
        *(("ListPodSandbox", "debug"), ("Status", "debug"), ("PodSandboxStatus", "warning")),
    ]


async def test_an_error_of_ours_arrives_with_its_code_and_words(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with serving(tmp_path) as (daemon, clients):
            daemon.pods.failure = CniPluginError("bridge", "ADD", "no addresses", code=11)
            failure = await failure_of(clients.runtime.RunPodSandbox(RUN))
    assert failure.code() is grpc.StatusCode.UNAVAILABLE
    assert failure.details() == "CNI plugin bridge: ADD: no addresses (code 11)"
    (line,) = ends(logs)
    assert (line["code"], line["error"]) == ("UNAVAILABLE", failure.details())


async def test_a_bug_is_answered_without_detail_and_logged_with_it(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with serving(tmp_path) as (daemon, clients):
            daemon.pods.failure = RuntimeError("private")
            failure = await failure_of(clients.runtime.RunPodSandbox(RUN))
    assert failure.code() is grpc.StatusCode.INTERNAL
    assert "private" not in (failure.details() or "")
    assert "request_id=" in (failure.details() or "")
    assert any("private" in line.get("exception", "") for line in logs)
    assert ends(logs)[0]["log_level"] == "error"


async def test_what_a_call_that_failed_used_is_freed_as_it_ends(tmp_path: Path) -> None:
    error = WrongStateError("not now")
    async with serving(tmp_path) as (daemon, clients):
        gc.disable()
        try:
            daemon.pods.failure = error
            await failure_of(clients.runtime.RunPodSandbox(RUN))
            daemon.pods.failure = None
            kept = weakref.ref(error)  # as long as anything is that it was raised through
            del error
            assert kept() is None
        finally:
            gc.enable()


async def test_the_same_redacted_text_reaches_client_and_log(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with serving(tmp_path) as (daemon, clients):
            daemon.pods.failure = WrongStateError("https://me:hunter2@host/x said no")
            failure = await failure_of(clients.runtime.RunPodSandbox(RUN))
    assert failure.details() == "https://***@host/x said no" == ends(logs)[0]["error"]
    assert not any("hunter2" in str(line) for line in logs)


@pytest.mark.usefixtures("every_level")
async def test_the_debug_log_shows_requests_without_their_secrets(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with serving(tmp_path) as (_, clients):
            await failure_of(
                clients.images.PullImage(
                    api.PullImageRequest(
                        image=api.ImageSpec(image="private/app:1"),
                        auth=api.AuthConfig(username="me", password="hunter2"),
                    )
                )
            )
    (request,) = [line for line in logs if line["event"] == "request"]
    text = str(request["request"])
    assert request["log_level"] == "debug"
    assert "private/app:1" in text
    assert "hunter2" not in text
    assert ends(logs)[0]["image"] == "private/app:1"


async def test_calls_are_counted_by_service_method_and_code(tmp_path: Path) -> None:
    labels = {"service": "runtime.v1.RuntimeService", "method": "RunPodSandbox"}
    counted = "cri_shim_grpc_requests_total"
    before = sample(counted, **labels, code="OK"), sample(counted, **labels, code="UNAVAILABLE")
    timed = sample("cri_shim_grpc_request_seconds_count", **labels)
    async with serving(tmp_path) as (daemon, clients):
        await clients.runtime.RunPodSandbox(RUN)
        daemon.pods.failure = CniPluginError("bridge", "ADD", "no")
        await failure_of(clients.runtime.RunPodSandbox(RUN))
    assert sample(counted, **labels, code="OK") == before[0] + 1
    assert sample(counted, **labels, code="UNAVAILABLE") == before[1] + 1
    assert sample("cri_shim_grpc_request_seconds_count", **labels) == timed + 2


async def test_a_call_in_flight_is_counted_until_it_ends(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        daemon.pods.hold = asyncio.Event()
        call = clients.runtime.RunPodSandbox(RUN)
        await daemon.pods.entered.wait()
        assert sample("cri_shim_grpc_requests_in_flight") == 1
        daemon.pods.hold.set()
        await call
        assert sample("cri_shim_grpc_requests_in_flight") == 0


async def test_names_that_clients_make_up_do_not_become_series(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, clients):
        before = _unknown_calls()
        for path in ("/runtime.v1.RuntimeService/Nonsense", "/no.such.Service/Method"):
            failure = await failure_of(raw_call(clients, path, b""))
            assert failure.code() is grpc.StatusCode.UNIMPLEMENTED
        assert _unknown_calls() == before + 2
    assert "Nonsense" not in metrics.exposition().decode()


def _unknown_calls() -> float:
    return sample(
        "cri_shim_grpc_requests_total", service="unknown", method="unknown", code="UNIMPLEMENTED"
    )


@pytest.mark.parametrize(
    "raw", [b"\xff\xff\xff", b"\x0a\x05ab", b"\x12\x02\xff\xfe"], ids=["junk", "cut", "not UTF-8"]
)
async def test_bytes_that_are_no_request_are_the_clients_fault(tmp_path: Path, raw: bytes) -> None:
    async with serving(tmp_path) as (_, clients):
        path = "/runtime.v1.RuntimeService/RunPodSandbox"
        failure = await failure_of(raw_call(clients, path, raw))
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "RunPodSandbox" in (failure.details() or "")


async def test_a_call_whose_client_gives_up_is_logged_as_cancelled(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with serving(tmp_path) as (daemon, clients):
            daemon.pods.hold = asyncio.Event()
            call = clients.runtime.RunPodSandbox(RUN, timeout=0.2)
            failure = await failure_of(call)
            await until(lambda: daemon.gate.inside == 0)
            assert daemon.gate.inside == 0
    assert failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert [(e["code"], e["log_level"]) for e in ends(logs)] == [("CANCELLED", "info")]


async def test_an_answer_beyond_the_bound_is_refused_with_a_sentence(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        config = api.PodSandboxConfig(
            metadata=api.PodSandboxMetadata(name="n", namespace="ns", uid="u"),
            annotations={"big": "x" * 300_000},
        )
        daemon.pods.sandboxes = [make_sandbox(f"{n:064x}", config) for n in range(4)]
        failure = await failure_of(clients.runtime.ListPodSandbox(api.ListPodSandboxRequest()))
        small = await clients.runtime.ListPodSandbox(
            api.ListPodSandboxRequest(filter=api.PodSandboxFilter(id=f"{3:064x}"))
        )
    assert failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "limits.grpc_message" in (failure.details() or "")
    assert len(small.items) == 1


async def test_a_request_beyond_the_bound_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        request = api.RunPodSandboxRequest()
        request.CopyFrom(RUN)
        request.config.annotations["big"] = "x" * (1 << 20)
        failure = await failure_of(clients.runtime.RunPodSandbox(request))
        assert not daemon.pods.calls
    assert failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_while_recovering_only_questions_about_the_server_are_answered(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, is_ready=False) as (daemon, clients):
        health = health_pb2_grpc.HealthStub(clients.channel)
        assert (await clients.runtime.Version(api.VersionRequest())).runtime_name == "cri-shim"
        assert await _health(health) == health_pb2.HealthCheckResponse.NOT_SERVING
        for call in (
            clients.runtime.RunPodSandbox(RUN),
            clients.runtime.ListPodSandbox(api.ListPodSandboxRequest()),
            clients.images.ListImages(api.ListImagesRequest()),
        ):
            failure = await failure_of(call)
            assert failure.code() is grpc.StatusCode.UNAVAILABLE
            assert "recovering" in (failure.details() or "")
        assert not daemon.pods.calls
        await daemon.listeners.set_ready()
        assert await _health(health) == health_pb2.HealthCheckResponse.SERVING
        await clients.runtime.RunPodSandbox(RUN)


async def test_health_of_an_unknown_service_is_not_found(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with serving(tmp_path) as (_, clients):
            health = health_pb2_grpc.HealthStub(clients.channel)
            failure = await failure_of(
                health.Check(health_pb2.HealthCheckRequest(service="no.such.Service"))
            )
    assert failure.code() is grpc.StatusCode.NOT_FOUND
    assert [(e["rpc"], e["code"]) for e in ends(logs)] == [("Check", "NOT_FOUND")]


async def test_who_watches_health_sees_the_server_become_ready_and_stop(tmp_path: Path) -> None:
    seen = []
    async with serving(tmp_path, is_ready=False) as (daemon, clients):
        watch = health_pb2_grpc.HealthStub(clients.channel).Watch(
            health_pb2.HealthCheckRequest(service="runtime.v1.RuntimeService")
        )
        seen.append((await watch.read()).status)
        await daemon.listeners.set_ready()
        seen.append((await watch.read()).status)
        async with asyncio.timeout(10):
            await asyncio.gather(daemon.listeners.stop(5), _note(seen, watch))
    serving_, not_serving = (
        health_pb2.HealthCheckResponse.SERVING,
        health_pb2.HealthCheckResponse.NOT_SERVING,
    )
    assert seen == [not_serving, serving_, not_serving]


async def _note(seen: list[Any], watch: Any) -> None:
    seen.append((await watch.read()).status)


async def _health(stub: Any) -> Any:
    return (await stub.Check(health_pb2.HealthCheckRequest())).status


async def test_an_rpc_that_is_not_served_yet_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, clients):
        failure = await failure_of(
            clients.runtime.CheckpointContainer(api.CheckpointContainerRequest())
        )
    assert failure.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "RuntimeService.CheckpointContainer: this version of cri-shim does not implement" in (
        failure.details() or ""
    )
