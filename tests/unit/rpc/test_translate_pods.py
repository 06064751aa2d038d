from __future__ import annotations

import msgspec
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.rpc import translate_pods
from cri_shim.rpc.translate_pods import list_entry, pod_sandbox, pod_sandbox_status, selected
from cri_shim.sandbox.store.model import SandboxState, SandboxStatus
from tests.unit.rpc.fakes import CREATED_AT_NS, make_sandbox


def test_an_entry_tells_who_the_sandbox_is() -> None:
    entry = pod_sandbox(make_sandbox())
    assert entry == api.PodSandbox(
        id="5" * 64,
        metadata=api.PodSandboxMetadata(name="web", namespace="default", uid="u1", attempt=2),
        state=api.SANDBOX_READY,
        created_at=CREATED_AT_NS,
        labels={"app": "web"},
        annotations={"note": "one"},
        runtime_handler="runc",
    )


def test_an_entry_is_encoded_once_per_status() -> None:
    sandbox = make_sandbox()
    first = list_entry(sandbox)
    assert list_entry(sandbox) is first
    sandbox.status = sandbox.status.stopped(CREATED_AT_NS + 9, "stopped")
    second = list_entry(sandbox)
    assert [pod.state for pod in api.ListPodSandboxResponse.FromString(first + second).items] == [
        api.SANDBOX_READY,
        api.SANDBOX_NOTREADY,
    ]
    assert list_entry(sandbox) is second


def test_an_entry_is_the_same_in_a_stream() -> None:
    sandbox = make_sandbox()
    streamed = api.StreamPodSandboxesResponse.FromString(list_entry(sandbox))
    assert list(streamed.pod_sandboxes) == [pod_sandbox(sandbox)]


def test_every_state_has_a_form() -> None:
    assert set(translate_pods.STATES) == set(SandboxState)


def test_a_status_tells_addresses_and_namespaces() -> None:
    options = api.NamespaceOption(pid=api.CONTAINER, ipc=api.NODE)
    config = api.PodSandboxConfig(
        metadata=api.PodSandboxMetadata(name="web", namespace="default", uid="u1"),
        linux=api.LinuxPodSandboxConfig(
            security_context=api.LinuxSandboxSecurityContext(namespace_options=options)
        ),
    )
    status = pod_sandbox_status(make_sandbox(config=config))
    assert status.network == api.PodSandboxNetworkStatus(
        ip="10.1.0.2", additional_ips=[api.PodIP(ip="fd00::2")]
    )
    assert status.linux.namespaces.options == options
    assert (status.id, status.created_at, status.runtime_handler) == (
        *("5" * 64, CREATED_AT_NS, "runc"),
    )


@pytest.mark.parametrize(
    "change", [{"ips": ()}, {"torn_down": True}], ids=["host network", "torn down"]
)
def test_addresses_that_are_not_the_pods_are_not_told(change: dict[str, object]) -> None:
    sandbox = make_sandbox()
    sandbox.status = msgspec.structs.replace(sandbox.status, **change)
    status = pod_sandbox_status(sandbox)
    assert status.HasField("network")
    assert status.network.ip == ""
    assert not status.network.additional_ips


READY = api.PodSandboxStateValue(state=api.SANDBOX_READY)
NOT_READY = api.PodSandboxStateValue(state=api.SANDBOX_NOTREADY)


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        (api.PodSandboxFilter(), "ab"),
        (api.PodSandboxFilter(id="a"), "a"),
        (api.PodSandboxFilter(id="a" * 64), "a"),
        (api.PodSandboxFilter(id="a" * 64 + "a"), ""),
        (api.PodSandboxFilter(id="c"), ""),
        (api.PodSandboxFilter(state=READY), "a"),
        (api.PodSandboxFilter(state=NOT_READY), "b"),
        (api.PodSandboxFilter(label_selector={"app": "web"}), "ab"),
        (api.PodSandboxFilter(label_selector={"app": "db"}), ""),
        (api.PodSandboxFilter(label_selector={"app": "web", "x": ""}), ""),
        (api.PodSandboxFilter(id="b", state=READY), ""),
    ],
)
def test_a_filter_lets_through_what_meets_all_of_it(
    filter_: api.PodSandboxFilter, expected: str
) -> None:
    stopped = SandboxStatus(ready_at_ns=1, stopped_at_ns=2)
    sandboxes = [make_sandbox("a" * 64), make_sandbox("b" * 64, status=stopped)]
    assert "".join(s.id[0] for s in selected(sandboxes, filter_)) == expected
