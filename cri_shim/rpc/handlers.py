"""Builds grpc handlers from a service's descriptor and an object with one method per RPC.

Rules:
- The method's name is the RPC's name in snake case: `RunPodSandbox` -> `run_pod_sandbox(request)`.
- A method takes the request, or an async iterator of requests for a client-streaming RPC. It returns the response, as a
  message or encoded (`encoded`). For a server-streaming RPC it also takes `send`, awaits it per response, and returns
  None.
- A method awaits each `send` to its end. If only the write is cancelled, and not the whole call, grpc never finishes
  the call.
- An RPC without a method is answered UNIMPLEMENTED.
- `runtime.v1alpha2` is served by the v1 objects with v1 messages: on the wire each v1alpha2 message is a subset of its
  v1 namesake.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.message_factory import GetMessageClass

from cri_shim._pb.admin.v1 import admin_pb2
from cri_shim._pb.cri.v1 import api_pb2
from cri_shim._pb.cri.v1alpha2 import api_pb2 as v1alpha2_pb2
from cri_shim.errors import UnsupportedError
from cri_shim.rpc.encoded import encoder

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.descriptor import FileDescriptor, MethodDescriptor, ServiceDescriptor

    Context = grpc.aio.ServicerContext[Any, Any]

_BEFORE_CAPITAL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@dataclass(frozen=True, slots=True)
class Service:
    """One gRPC service."""

    descriptor: ServiceDescriptor
    """Gives the service's name and its RPCs."""
    messages: ServiceDescriptor
    """Gives the messages of those RPCs: v1's for both CRI versions."""
    servicer: object
    unix_only: bool = False
    """Whether tcp:// listeners leave the service out."""

    @property
    def name(self) -> str:
        """The full name, e.g. `runtime.v1.RuntimeService`."""
        return self.descriptor.full_name

    def handler(self) -> grpc.GenericRpcHandler:
        """The service as `grpc.aio.Server.add_generic_rpc_handlers` takes it."""
        return grpc.method_handlers_generic_handler(
            self.name,
            {
                method.name: _method_handler(
                    self.messages.methods_by_name[method.name], self.servicer
                )
                for method in self.descriptor.methods
            },
        )


def cri_services(
    runtime: Callable[[str], object], image: Callable[[str], object]
) -> tuple[Service, ...]:
    """Both services of both CRI versions; `runtime` and `image` make the servicer for a version (`v1`, `v1alpha2`)."""
    return tuple(
        Service(
            descriptor=file.services_by_name[name],
            messages=api_pb2.DESCRIPTOR.services_by_name[name],
            servicer=make(_api_version(file)),
        )
        for file in (api_pb2.DESCRIPTOR, v1alpha2_pb2.DESCRIPTOR)
        for name, make in (("RuntimeService", runtime), ("ImageService", image))
    )


def admin_service(servicer: object) -> Service:
    """The service behind the command line."""
    descriptor = admin_pb2.DESCRIPTOR.services_by_name["Admin"]
    return Service(descriptor, descriptor, servicer, unix_only=True)


def python_name(rpc: str) -> str:
    """`ImageFsInfo` -> `image_fs_info`."""
    return _BEFORE_CAPITAL.sub("_", rpc).lower()


def _api_version(file: FileDescriptor) -> str:
    return file.package.rpartition(".")[2]


def _method_handler(method: MethodDescriptor, servicer: object) -> grpc.RpcMethodHandler[Any, Any]:
    behaviour: Any = getattr(servicer, python_name(method.name), None) or _unserved(method)

    def call(request: Any, context: Context) -> Any:  # noqa: ANN401 - grpc's own signature
        return behaviour(request, context.write) if method.server_streaming else behaviour(request)

    make: Any = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[method.client_streaming, method.server_streaming]
    handler: grpc.RpcMethodHandler[Any, Any] = make(
        call,
        GetMessageClass(method.input_type).FromString,
        encoder(GetMessageClass(method.output_type)),
    )
    return handler


def _unserved(method: MethodDescriptor) -> Callable[[object], object]:
    async def refuse(request: object, send: object = None) -> None:
        raise UnsupportedError(
            f"{method.containing_service.name}.{method.name}: this version of cri-shim does not implement this RPC"
        )

    return refuse
