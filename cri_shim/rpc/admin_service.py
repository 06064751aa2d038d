"""The admin service: what the command line needs and CRI has no call for. Unix sockets only.

Rules are those of `runtime_service`. The calls about images stand in `admin_images`, since the command line can do
without a daemon for them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cri_shim
from cri_shim._pb.admin.v1 import admin_pb2 as admin
from cri_shim.rpc.admin_images import ImageCalls

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence


@dataclass(frozen=True, slots=True)
class DaemonInfo:
    """What the daemon is and works with."""

    root: str
    state: str
    config_json: str
    cgroup_driver: str
    handlers: Sequence[tuple[str, str]]
    """Name and version of each runtime handler, the default first."""


@dataclass(frozen=True, slots=True)
class AdminService(ImageCalls):
    """The RPCs of `cri_shim.admin.v1.Admin`."""

    describe: Callable[[], Awaitable[DaemonInfo]]

    async def info(self, request: admin.InfoRequest) -> admin.InfoResponse:
        """What this daemon is."""
        facts = await self.describe()
        return admin.InfoResponse(
            version=cri_shim.__version__,
            pid=os.getpid(),
            root=facts.root,
            state=facts.state,
            config_json=facts.config_json,
            cgroup_driver=facts.cgroup_driver,
            handlers=[
                admin.HandlerInfo(name=name, version=version) for name, version in facts.handlers
            ],
        )
