"""Whether this daemon's own CRI answers: asked over its own socket, as a client would."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim._pb.cri.v1.api_pb2_grpc import RuntimeServiceStub

if TYPE_CHECKING:
    from pathlib import Path


class SelfCheck:
    """A connection that is kept. Used on the loop that the server runs on: one that doesn't turn doesn't answer."""

    def __init__(self, socket_path: Path) -> None:
        self._channel = grpc.aio.insecure_channel(
            f"unix:{socket_path}", options=[("grpc.enable_http_proxy", 0)]
        )
        self._runtime = RuntimeServiceStub(self._channel)

    async def problem(self, timeout_s: float) -> str:
        """What `Version`, which is answered in every phase, failed with; "" if it did not."""
        try:
            await self._runtime.Version(api.VersionRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        return ""

    async def close(self) -> None:
        """End the connection."""
        await self._channel.close(None)
