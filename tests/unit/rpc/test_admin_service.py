from __future__ import annotations

import os
from typing import TYPE_CHECKING

import grpc
import pytest

import cri_shim
from cri_shim._pb.admin.v1 import admin_pb2 as admin
from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.ids import new_id
from cri_shim.operations import step
from cri_shim.sandbox.recovery.wipe import Left
from tests.unit.rpc.fakes import serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.asyncio


async def test_info_tells_what_the_daemon_is(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, clients):
        info = await clients.admin.Info(admin.InfoRequest())
    assert (info.version, info.pid) == (cri_shim.__version__, os.getpid())
    assert (info.root, info.state) == ("/var/lib/cri-shim", "/run/cri-shim")
    assert [(h.name, h.version) for h in info.handlers] == [("runc", "1.1.5")]


async def test_what_is_under_way_is_told_while_the_daemon_recovers_too(tmp_path: Path) -> None:
    object_id = new_id()
    async with serving(tmp_path, is_ready=False) as (daemon, clients):
        with daemon.operations.begin("recovery", object_id), step("runc delete"):
            answer = await clients.admin.Operations(admin.OperationsRequest())
    [operation] = answer.operations
    assert (operation.operation, operation.object, operation.subject) == (
        *("recovery", object_id),
        object_id,
    )
    assert [each.step for each in operation.steps] == ["runc delete"]
    assert operation.seconds >= operation.steps[0].seconds >= 0


async def test_a_wipe_tells_its_progress_what_is_left_and_the_sums(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        daemon.everything.wiped.left.append(Left("sandbox 1a", "it is busy"))
        answers = [a async for a in clients.admin.Wipe(admin.WipeRequest(images=True))]
    assert daemon.everything.asked == [True]
    assert [a.WhichOneof("event") for a in answers] == ["progress", "left", "sums"]
    assert (answers[0].progress.step, answers[0].progress.total) == ("removing pods", 2)
    assert (answers[1].left.what, answers[1].left.why) == ("sandbox 1a", "it is busy")
    assert (answers[2].sums.sandboxes, answers[2].sums.containers) == (2, 3)


async def test_nothing_is_changed_beside_a_wipe_and_everything_after_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        daemon.everything.may_end.clear()
        wiping = clients.admin.Wipe(admin.WipeRequest())
        await wiping.read()
        await clients.runtime.ListContainers(api.ListContainersRequest())
        request = api.StopPodSandboxRequest(pod_sandbox_id="1a")
        with pytest.raises(grpc.aio.AioRpcError, match="is being wiped; retry") as refused:
            await clients.runtime.StopPodSandbox(request)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.aio.AioRpcError, match="is being wiped; retry"):
            await clients.admin.Wipe(admin.WipeRequest()).read()
        daemon.everything.may_end.set()
        while await wiping.read() is not grpc.aio.EOF:
            pass
        await clients.runtime.StopPodSandbox(request)
