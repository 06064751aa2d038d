"""The command line's gRPC client: a channel to the daemon's unix socket, and gRPC errors as cri-shim's own.

The client is synchronous, since a command does one thing at a time. It exposes the generated stubs as they are.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Self

import grpc

from cri_shim._pb.admin.v1.admin_pb2_grpc import AdminStub
from cri_shim._pb.cri.v1.api_pb2_grpc import ImageServiceStub, RuntimeServiceStub
from cri_shim.errors import (
    AlreadyExistsError,
    CorruptStateError,
    CriShimError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    PermissionRefusedError,
    ResourceExhaustedError,
    UnavailableError,
    UnsupportedError,
    WrongStateError,
)
from cri_shim.rpc.status import answer_to

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

CONNECT_TIMEOUT_S: Final = 5.0
DEFAULT_MAX_MESSAGE_BYTES: Final = 16 << 20


class RemoteNotFoundError(NotFoundError):
    """The daemon answered NOT_FOUND. Its text names kind and key already, so they are not put in front again."""

    def __init__(self, text: str) -> None:
        CriShimError.__init__(self, text)
        self.kind = self.key = ""


_CLASSES: Final[dict[grpc.StatusCode, Callable[[str], CriShimError]]] = {
    grpc.StatusCode.NOT_FOUND: RemoteNotFoundError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.FAILED_PRECONDITION: WrongStateError,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionRefusedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.DATA_LOSS: CorruptStateError,
}


class Client:
    """A connection to a running daemon. Use it as `with Client(socket) as client`."""

    def __init__(
        self, socket_path: Path, *, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    ) -> None:
        """Check that the daemon accepts connections, and open a channel.

        Raises: UnavailableError naming the socket and how to start the daemon; PermissionRefusedError.
        """
        self.socket_path = socket_path
        _probe(socket_path)
        self._channel = grpc.insecure_channel(
            f"unix:{socket_path}",
            options=[
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", max_message_bytes),
                # grpc applies https_proxy to unix sockets, too, unless it is told not to.
                ("grpc.enable_http_proxy", 0),
            ],
        )
        self.runtime = RuntimeServiceStub(self._channel)
        self.images = ImageServiceStub(self._channel)
        self.admin = AdminStub(self._channel)

    def close(self) -> None:
        """Close the channel, which cancels every call on it."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@contextmanager
def errors_of(doing: str) -> Iterator[None]:
    """Convert a gRPC error raised in the block into a CriShimError: `doing`, then the daemon's text."""
    try:
        yield
    except grpc.RpcError as error:
        raise error_of(error, doing) from error


@contextmanager
def local_errors_of(doing: str) -> Iterator[None]:
    """As `errors_of`, for a call made in this process: bound and redact its error as the daemon would have."""
    try:
        yield
    except CriShimError as error:
        code, text = answer_to(error, request_id="")
        raise _error(code, text, doing) from error


def error_of(error: grpc.RpcError, doing: str) -> CriShimError:
    """The CriShimError for the code and the text of a gRPC error, on one line."""
    answer: Any = error  # also a grpc.Call, which grpc's type annotations do not say
    code: grpc.StatusCode = answer.code()
    return _error(code, answer.details() or code.name, doing)


def _error(code: grpc.StatusCode, text: str, doing: str) -> CriShimError:
    return _CLASSES.get(code, CriShimError)(f"{doing}: {' '.join(text.split())}")


def _probe(socket_path: Path) -> None:
    """Connect once with a plain socket. grpc would retry for seconds, and its error would not name the cause."""
    start = "start the daemon with `cri-shim serve`"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_TIMEOUT_S)
        try:
            probe.connect(os.fspath(socket_path))
        except PermissionError as error:
            raise PermissionRefusedError(
                f"may not connect to {socket_path}: run this as root or as a member of the socket's group"
            ) from error
        except OSError as error:
            why = {
                errno.ENOENT: "there is no such socket",
                errno.ECONNREFUSED: "nothing listens there",
            }.get(error.errno or 0, error.strerror or "no answer")
            raise UnavailableError(
                f"cannot reach the daemon on {socket_path}: {why}; {start}, or say where it is with --socket"
            ) from error
