"""The admin service: what the command line needs beyond CRI. Served on unix sockets only.

The rules of `runtime_service` hold here as well. The image calls are in `admin_images`, since the command line also
serves them itself, where no daemon runs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cri_shim
from cri_shim._pb.admin.v1 import admin_pb2 as admin
from cri_shim.rpc.admin_images import ImageCalls
from cri_shim.rpc.admin_wipe import answer_wipe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from cri_shim.operations import Operations
    from cri_shim.rpc.admin_wipe import Wipe
    from cri_shim.rpc.gate import Gate


@dataclass(frozen=True, slots=True)
class DaemonInfo:
    """The daemon's version-independent facts, for `cri-shim status` and `cri-shim version`."""

    root: str
    state: str
    config_json: str
    cgroup_driver: str
    handlers: Sequence[tuple[str, str]]
    """Name and version of each runtime handler, the default handler first."""


@dataclass(frozen=True, slots=True)
class AdminService(ImageCalls):
    """The RPCs of `cri_shim.admin.v1.Admin`."""

    describe: Callable[[], Awaitable[DaemonInfo]]
    running: Operations
    everything: Wipe
    gate: Gate

    async def info(self, request: admin.InfoRequest) -> admin.InfoResponse:
        """Describe this daemon: version, pid, directories, configuration, runtime handlers."""
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

    async def operations(self, request: admin.OperationsRequest) -> admin.OperationsResponse:
        """List the operations under way, the oldest first, each with the steps it is at."""
        return admin.OperationsResponse(
            operations=[
                admin.Operation(
                    operation=view.name,
                    object=view.object_id,
                    subject=view.subject,
                    seconds=view.seconds,
                    steps=[
                        admin.OperationStep(step=each.name, seconds=each.seconds)
                        for each in view.steps
                    ],
                )
                for view in self.running.under_way()
            ]
        )

    async def wipe(
        self, request: admin.WipeRequest, send: Callable[[admin.WipeResponse], Awaitable[None]]
    ) -> None:
        """Remove every pod and container of this root. Meanwhile the gate refuses calls that change something."""
        with self.gate.read_only("everything on this node is being wiped"):
            await answer_wipe(self.everything, request, send)
