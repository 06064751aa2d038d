from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import cri_shim
from cri_shim._pb.admin.v1 import admin_pb2 as admin
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
