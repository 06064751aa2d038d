"""gRPC server reflection, imported at its first call.

Only tools such as grpcurl use reflection. Without this delay every daemon would hold its package, and protobuf's
`descriptor_pb2`, in memory from the start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc

if TYPE_CHECKING:
    from collections.abc import Sequence

SERVICE_NAME: Final = "grpc.reflection.v1alpha.ServerReflection"
_METHOD: Final = f"/{SERVICE_NAME}/ServerReflectionInfo"


class ReflectionHandler(grpc.GenericRpcHandler):
    """Serves ServerReflection for one server."""

    def __init__(self, service_names: Sequence[str]) -> None:
        """`service_names` are the server's other services; reflection itself is added."""
        self._names = [*service_names, SERVICE_NAME]

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of ServerReflectionInfo, or None for any other method."""
        if handler_call_details.method != _METHOD:
            return None
        from grpc_reflection.v1alpha import reflection, reflection_pb2

        handler: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
            reflection.aio.ReflectionServicer(self._names).ServerReflectionInfo,
            reflection_pb2.ServerReflectionRequest.FromString,
            reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        return handler
