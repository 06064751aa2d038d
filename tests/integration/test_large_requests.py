"""Requests with one field far too large, to the daemon: refused in few words, or done, and nobody waits meanwhile.

A part of the fields is tried in every run; all with `-m slow`.
"""

from __future__ import annotations

import re
import urllib.request
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.rpc.status import MAX_TEXT_BYTES
from tests.integration.scene import Pod
from tests.integration.test_any_container import REFUSALS
from tests.request_sizes import WORDS, Place, fill, places

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

pytestmark = pytest.mark.integration

SIZES = (4000, 300_000, 7 << 20)
ENTRIES_BYTES = 1 << 20
"""Of lists of messages that are empty: to decode them costs a hundred times as much as strings do, and whoever may
open the socket could send as many. No pod's author can: what is empty isn't in a pod's specification."""
LONG_STALL_S = 0.25
"""Of CPU time. Everything up to 8 MiB is decoded and hashed in a tenth of it; what was quadratic took seconds."""
TAKEN_AT_THEIR_WORD = {"host_path", "log_directory", "log_path", "cgroup_parent"}
"""Places on the node: what is made there is no container's, and stays."""
SOME_OR_ALL = [
    pytest.param(5, id="some"),
    pytest.param(1, id="all", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
]


def long_stalls(daemon: Daemon) -> int:
    """How often the daemon's loop computed for so long in one turn, since it was started."""
    with urllib.request.urlopen(
        f"http://127.0.0.1:{daemon.metrics_port}/metrics", timeout=10
    ) as answer:
        text = answer.read().decode()
    found = {
        bound: float(value)
        for labels, value in re.findall(
            r"^cri_shim_loop_stall_seconds_bucket\{(.*)\} (\S+)$", text, re.MULTILINE
        )
        if 'clock="cpu"' in labels and 'process="daemon"' in labels
        for bound in re.findall(r'le="([^"]+)"', labels)
    }
    return int(found["+Inf"] - found[str(LONG_STALL_S)])


def tried_places(request: Any, *, every: int, skip: set[str]) -> list[tuple[int, Place]]:
    found = [
        place
        for place in places(request.DESCRIPTOR)
        if not {field.name for field in place.fields} & (TAKEN_AT_THEIR_WORD | skip)
    ]
    return list(enumerate(found))[::every]


def sizes(place: Place) -> list[int]:
    most = ENTRIES_BYTES if place.field.is_repeated and place.field.message_type else max(SIZES)
    return [min(size, most) for size in SIZES]


def answered(call: Callable[..., Any], request: Any) -> Any:
    """What was answered, or None; a refusal is one of CRI's, in few words."""
    refusal: Any = None
    try:
        return call(request, timeout=60)
    except grpc.RpcError as error:
        refusal = error
    assert refusal.code() in REFUSALS, refusal.details()
    assert len(refusal.details().encode()) <= MAX_TEXT_BYTES
    return None


@pytest.mark.parametrize("every", SOME_OR_ALL)
def test_no_field_of_a_container_holds_the_daemon_up(
    daemon: Daemon, client: Client, image: str, every: int
) -> None:
    pod = Pod.run(client, image)
    before = long_stalls(daemon)
    for number, place in tried_places(
        api.CreateContainerRequest(), every=every, skip={"windows", "sandbox_config"}
    ):
        for size in sizes(place):
            request = api.CreateContainerRequest(
                pod_sandbox_id=pod.id, config=pod.container("sleep", "60")
            )
            fill(request, place, WORDS[number % len(WORDS)], size)
            if made := answered(client.runtime.CreateContainer, request):
                client.remove(made.container_id)
            assert long_stalls(daemon) == before, f"{place} {size}"


@pytest.mark.parametrize("every", SOME_OR_ALL)
def test_no_field_of_a_pod_holds_the_daemon_up(daemon: Daemon, client: Client, every: int) -> None:
    before = long_stalls(daemon)
    for number, place in tried_places(api.RunPodSandboxRequest(), every=every, skip={"windows"}):
        for size in sizes(place):
            request = api.RunPodSandboxRequest(config=client.pod_config())
            fill(request, place, WORDS[number % len(WORDS)], size)
            if made := answered(client.runtime.RunPodSandbox, request):
                client.remove_pod(made.pod_sandbox_id)
            assert long_stalls(daemon) == before, f"{place} {size}"


def test_a_home_that_is_refused_and_ten_thousand_ports_hold_nobody_up(
    daemon: Daemon, client: Client, image: str
) -> None:
    pod = Pod.run(client, image)
    before = long_stalls(daemon)
    for home in (b"://" * 20_000 + b"\n", b"password=" * 10_000 + b"\x7f"):
        config = pod.container("sleep", "60")
        config.envs.add(key="HOME", value=home)
        with pytest.raises(grpc.RpcError) as caught:
            pod.create(config)
        assert "envs: HOME" in (caught.value.details() or "")
        assert "control characters" in (caught.value.details() or "")
    greedy = client.pod_config(host_ports=dict.fromkeys(range(20000, 30000), 80))
    with pytest.raises(grpc.RpcError, match="10000 host ports: the limit of a pod is 1024"):
        client.run_pod(greedy)
    assert long_stalls(daemon) == before
