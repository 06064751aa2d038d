"""Checks that this daemon's CRI socket answers, by a call over that socket as a client would make it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim._pb.cri.v1.api_pb2_grpc import RuntimeServiceStub

if TYPE_CHECKING:
    from pathlib import Path


class SelfCheck:
    """A persistent channel to the daemon's own socket.

    It is used on the server's event loop, so that it fails also if the loop does not turn.
    """

    def __init__(self, socket_path: Path) -> None:
        self._channel = grpc.aio.insecure_channel(
            f"unix:{socket_path}", options=[("grpc.enable_http_proxy", 0)]
        )
        self._runtime = RuntimeServiceStub(self._channel)

    async def problem(self, timeout_s: float) -> str:
        """Call `Version`, which is served in every phase. Returns the error's code and text, or "" on success."""
        try:
            await self._runtime.Version(api.VersionRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        return ""

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close(None)
