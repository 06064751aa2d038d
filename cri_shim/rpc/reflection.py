"""gRPC's server reflection, loaded with its first call.

Only people with a tool such as grpcurl ask for it, so that a daemon must not hold its package, and protobuf's
descriptors of descriptors, in memory from the start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc

if TYPE_CHECKING:
    from collections.abc import Sequence

SERVICE_NAME: Final = "grpc.reflection.v1alpha.ServerReflection"
_METHOD: Final = f"/{SERVICE_NAME}/ServerReflectionInfo"


class ReflectionHandler(grpc.GenericRpcHandler):
    """Answers which services a server has, and what their messages look like."""

    def __init__(self, service_names: Sequence[str]) -> None:
        """`service_names` are those of the other services; reflection itself is added."""
        self._names = [*service_names, SERVICE_NAME]

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of the one method that there is; None for any other method."""
        if handler_call_details.method != _METHOD:
            return None
        from grpc_reflection.v1alpha import reflection, reflection_pb2

        handler: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
            reflection.aio.ReflectionServicer(self._names).ServerReflectionInfo,
            reflection_pb2.ServerReflectionRequest.FromString,
            reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        return handler
