"""Requests under way hold a bounded number of bytes, of which each tenant has a part."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import ResourceExhaustedError
from cri_shim.rpc.request_budget import LARGE_BYTES, RequestBudget, tenant_of_request
from cri_shim.rpc.request_limits import MAX_REQUEST_BYTES
from tests.unit.sandbox.records import make_container, make_sandbox

if TYPE_CHECKING:
    from google.protobuf.message import Message

LARGE = LARGE_BYTES + 1


@pytest.fixture
def budget() -> RequestBudget:
    return of_tenants(max_large_bytes=8 * LARGE, max_ordinary_bytes=8 * LARGE)


def of_tenants(**bounds: int) -> RequestBudget:
    """The first byte of a request says whose it is."""
    return RequestBudget(lambda raw: f"namespace {raw[:1].decode()}", **bounds)


def take(stack: ExitStack, budget: RequestBudget, size: int, tenant: str) -> None:
    stack.enter_context(budget.held(tenant.encode() * size))


def test_the_largest_request_fits_if_it_is_alone() -> None:
    budget = of_tenants()
    with ExitStack() as stack:
        take(stack, budget, MAX_REQUEST_BYTES, "a")
        with pytest.raises(ResourceExhaustedError):
            take(stack, budget, LARGE, "b")


def test_a_tenant_has_half_of_what_others_leave(budget: RequestBudget) -> None:
    with ExitStack() as stack:
        for _ in range(4):
            take(stack, budget, LARGE, "a")
        with pytest.raises(
            ResourceExhaustedError, match=r"65537 bytes: large requests under way of namespace a"
        ):
            take(stack, budget, LARGE, "a")
        for _ in range(2):
            take(stack, budget, LARGE, "b")
        with pytest.raises(ResourceExhaustedError, match="large requests under way of namespace b"):
            take(stack, budget, LARGE, "b")
        take(stack, budget, LARGE, "c")
    with ExitStack() as stack:  # everything was given back, what was refused as well
        for _ in range(4):
            take(stack, budget, LARGE, "b")


def test_one_request_of_a_tenant_may_be_larger_than_its_part(budget: RequestBudget) -> None:
    with ExitStack() as stack:
        take(stack, budget, 7 * LARGE, "a")
        take(stack, budget, LARGE, "b")
        with pytest.raises(
            ResourceExhaustedError, match="all large requests under way hold 524296"
        ):
            take(stack, budget, LARGE, "c")


def test_large_requests_keep_no_ordinary_one_out(budget: RequestBudget) -> None:
    with ExitStack() as stack:
        take(stack, budget, 8 * LARGE, "a")
        for _ in range(4):
            take(stack, budget, LARGE_BYTES, "a")
        with pytest.raises(ResourceExhaustedError):
            take(stack, budget, LARGE_BYTES, "a")
        take(stack, budget, LARGE_BYTES, "b")


@pytest.mark.asyncio
async def test_large_requests_are_decoded_in_turns_of_their_own(budget: RequestBudget) -> None:
    turn, decoded = 0, []

    async def serve(size: int) -> None:
        async with budget.decoding(b"x" * size):
            decoded.append((size, turn))

    tasks = [asyncio.create_task(serve(size)) for size in (LARGE, LARGE, LARGE, 1, 1)]
    while not all(task.done() for task in tasks):
        turn += 1
        await asyncio.sleep(0)
    assert len({when for size, when in decoded if size == LARGE}) == 3
    assert {when for size, when in decoded if size == 1} == {1}


def test_a_request_is_of_the_namespace_whose_pod_it_is_about() -> None:
    sandbox, container = make_sandbox(), make_container()
    container.record = msgspec.structs.replace(container.record, pod_namespace="own")
    find = partial(
        tenant_of_request,
        sandbox={sandbox.id: sandbox}.get,
        container={container.id: container}.get,
    )

    def whose(request: Message) -> str:
        return find(request.SerializeToString())

    namespace = sandbox.record.metadata.namespace
    words = ["x" * LARGE_BYTES]
    assert whose(api.ExecSyncRequest(container_id=container.id, cmd=words)) == "namespace own"
    assert whose(api.CreateContainerRequest(pod_sandbox_id=sandbox.id)) == f"namespace {namespace}"
    config = api.PodSandboxConfig(metadata=api.PodSandboxMetadata(name="n", namespace="new"))
    config.annotations["a"] = "x" * LARGE_BYTES
    assert whose(api.RunPodSandboxRequest(config=config)) == "namespace new"
    assert whose(api.ListContainersRequest()) == "no pod"
    assert whose(api.ExecSyncRequest(container_id="unknown")) == "no pod"
    assert whose(api.ExecSyncRequest(cmd=words)) == "no pod"


@pytest.mark.parametrize(
    "raw",
    [b"", b"\n", b"\n\xff", b"\n\xff\xff\xff\xff\xff\xff", b"\n\x05ab", b"\n\x40" + b"\xff" * 64],
)
def test_what_is_no_message_is_about_no_pod(raw: bytes) -> None:
    assert tenant_of_request(raw, sandbox=lambda _: None, container=lambda _: None) == "no pod"
