"""Lists fit into one message, whatever pods have as labels and annotations, and nobody can take all the room."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import ResourceExhaustedError
from cri_shim.rpc.translate_containers import container_entry
from cri_shim.rpc.translate_pods import pod_sandbox
from cri_shim.sandbox.list_bounds import (
    ORDINARY_CONTAINER_BYTES,
    ORDINARY_SANDBOX_BYTES,
    check_container_entry,
    check_sandbox_entry,
)
from tests.fakes.node_harness import container_config, pod_config
from tests.unit.sandbox.records import make_container, make_sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from cri_shim._pb.cri.v1 import api_pb2 as api
    from cri_shim.sandbox.store.store import Container, Sandbox
    from tests.fakes.node_harness import NodeHarness

CLIENTS_TAKE_BYTES = 16 << 20
STATISTICS_BYTES = 512
"""Of one object, at most."""
KIB = 1 << 10


def pod_of(namespace: str, annotation_bytes: int) -> api.PodSandboxConfig:
    config = pod_config("web")
    config.metadata.namespace = namespace
    config.annotations["big"] = "x" * annotation_bytes
    return config


def container_of(namespace: str, annotation_bytes: int) -> api.ContainerConfig:
    config = container_config("main")
    config.labels["io.kubernetes.pod.namespace"] = namespace
    config.annotations["big"] = "x" * annotation_bytes
    return config


def filled_with_sandboxes(namespace: str, size: int, others: list[Sandbox]) -> int:
    """How many more of them are taken."""
    before = len(others)
    try:
        while True:
            config = pod_of(namespace, size)
            check_sandbox_entry(config, others)
            others.append(make_sandbox(config=config))
    except ResourceExhaustedError:
        return len(others) - before


def filled_with_containers(namespace: str, size: int, others: list[Container]) -> int:
    before = len(others)
    try:
        while True:
            config = container_of(namespace, size)
            check_container_entry(config, others)
            others.append(make_container(config=config))
    except ResourceExhaustedError:
        return len(others) - before


def test_an_ordinary_entry_is_taken_without_a_look_at_the_others() -> None:
    check_sandbox_entry(pod_of("a", ORDINARY_SANDBOX_BYTES - 300), must_not_be_asked())
    check_container_entry(container_of("a", ORDINARY_CONTAINER_BYTES - 500), must_not_be_asked())
    config = container_config()
    config.command.extend(["x" * 100] * 1000)  # lists don't repeat that
    check_container_entry(config, must_not_be_asked())


def must_not_be_asked() -> Iterator[Any]:
    return iter(partial(pytest.fail, "asked"), None)


def test_no_number_of_namespaces_makes_a_list_that_no_client_takes() -> None:
    sandboxes: list[Sandbox] = []
    containers: list[Container] = []
    for number in range(8):
        namespace = f"tenant-{number}"
        for size in (256 * KIB, 32 * KIB):
            filled_with_sandboxes(namespace, size, sandboxes)
            filled_with_containers(namespace, size, containers)
    sandboxes += [make_sandbox(config=pod_of("all", 7 * KIB)) for _ in range(500)]
    containers += [make_container(config=container_of("all", KIB)) for _ in range(1250)]
    total = sum(pod_sandbox(each).ByteSize() + STATISTICS_BYTES for each in sandboxes)
    assert total < CLIENTS_TAKE_BYTES
    total += sum(container_entry(each).ByteSize() + STATISTICS_BYTES for each in containers)
    assert total < CLIENTS_TAKE_BYTES


def test_one_namespace_leaves_room_to_the_others_and_they_to_each_other() -> None:
    others: list[Sandbox] = []
    counts = [filled_with_sandboxes(f"tenant-{n}", 256 * KIB, others) for n in range(3)]
    assert counts == [12, 6, 3]
    check_sandbox_entry(pod_of("victim", 100 * KIB), others)


def test_what_was_removed_makes_room() -> None:
    others: list[Sandbox] = []
    filled_with_sandboxes("a", 256 * KIB, others)
    with pytest.raises(
        ResourceExhaustedError, match=r"^labels, annotations: 2621\d\d bytes are too many"
    ):
        check_sandbox_entry(pod_of("a", 256 * KIB), others)
    others.pop()
    check_sandbox_entry(pod_of("a", 256 * KIB), others)


@pytest.mark.asyncio
async def test_a_pod_and_a_container_that_are_refused_leave_nothing(harness: NodeHarness) -> None:
    for number in range(12):
        config = pod_of("tenant", 256 * KIB)
        config.metadata.name = config.metadata.uid = f"big-{number}"
        await harness.pods.run_pod_sandbox(config, "")
    with pytest.raises(ResourceExhaustedError, match="the objects of the namespace may have"):
        await harness.pods.run_pod_sandbox(pod_of("tenant", 256 * KIB), "")
    assert len(harness.sandboxes) == 12
    sandbox = await harness.run_pod()
    for number in range(4):
        big = container_of("tenant", 256 * KIB)
        big.metadata.name = f"big-{number}"
        await harness.containers.create_container(sandbox.id, big, sandbox.config)
    big.metadata.name = "one too many"
    with pytest.raises(ResourceExhaustedError, match="the objects of the namespace may have"):
        await harness.containers.create_container(sandbox.id, big, sandbox.config)
