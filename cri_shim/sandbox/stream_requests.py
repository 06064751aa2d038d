"""Exec, Attach and PortForward: check the request, and return a one-time URL of the streaming server.

Requests are refused here if possible, since the caller gets a gRPC code. The container's state is checked again when
the client connects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.errors import InvalidArgumentError, NotReadyError, WrongStateError
from cri_shim.sandbox.store.model import ContainerState
from cri_shim.sandbox.store.requests import require_ready
from cri_shim.streaming.backend import AttachRequest, ExecRequest, PortForwardRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cri_shim.sandbox.containers import Containers
    from cri_shim.sandbox.pods import Pods
    from cri_shim.sandbox.store.store import Container
    from cri_shim.streaming.backend import Request
    from cri_shim.streaming.tickets import Tickets

MAX_PORT = 0xFFFF
MAX_PORTS = 1000
"""Ports in one request. kubectl sends those of its command line."""


class StreamRequests:
    """The streaming calls of RuntimeService."""

    def __init__(
        self,
        containers: Containers,
        pods: Pods,
        tickets: Tickets,
        base_url: Callable[[], str | None],
    ) -> None:
        """`base_url` returns the base of the URLs, without a final slash, or None while the server does not run."""
        self._containers = containers
        self._pods = pods
        self._tickets = tickets
        self._base_url = base_url

    def exec(
        self,
        container_id: str,
        command: Sequence[str],
        *,
        stdin: bool,
        stdout: bool,
        stderr: bool,
        tty: bool,
    ) -> str:
        """The URL of an exec.

        Raises InvalidArgumentError, NotFoundError, WrongStateError if the container does not run, NotReadyError while
        the streaming server does not run, ResourceExhaustedError if too many URLs are unused.
        """
        _check_streams("ExecRequest", stdin=stdin, stdout=stdout, stderr=stderr, tty=tty)
        for word in command:
            if "\0" in word:
                raise InvalidArgumentError("ExecRequest: cmd: an argument contains a NUL byte")
        container = self._running(container_id)
        streams = (stdin, stdout, stderr, tty)
        request = ExecRequest(container.id, tuple(command), *streams, container.sandbox_id)
        return self._url("exec", request)

    def attach(
        self, container_id: str, *, stdin: bool, stdout: bool, stderr: bool, tty: bool
    ) -> str:
        """The URL of an attach. Raises as `exec` does."""
        _check_streams("AttachRequest", stdin=stdin, stdout=stdout, stderr=stderr, tty=tty)
        container = self._running(container_id)
        streams = (stdin, stdout, stderr, tty)
        return self._url("attach", AttachRequest(container.id, *streams, container.sandbox_id))

    def port_forward(self, sandbox_id: str, ports: Sequence[int]) -> str:
        """The URL of a port-forward; without `ports` any port is allowed.

        Raises as `exec` does, and WrongStateError if the pod is not ready.
        """
        if len(ports) > MAX_PORTS:
            raise InvalidArgumentError(
                f"PortForwardRequest: port has {len(ports)} entries; the limit is {MAX_PORTS}"
            )
        for port in ports:
            if not 0 < port <= MAX_PORT:
                raise InvalidArgumentError(
                    f"PortForwardRequest: port: {port} is not a port number from 1 to {MAX_PORT}"
                )
        sandbox = self._pods.find(sandbox_id)
        require_ready(sandbox)
        return self._url("portforward", PortForwardRequest(sandbox.id, tuple(ports)))

    def _running(self, container_id: str) -> Container:
        container = self._containers.find(container_id)
        if container.state is not ContainerState.RUNNING:
            raise WrongStateError(f"container {container.id} is {container.state}, not running")
        return container

    def _url(self, kind: str, request: Request) -> str:
        base_url = self._base_url()
        if base_url is None:
            raise NotReadyError(
                "the streaming server is not running: the daemon is starting or stopping; retry"
            )
        return f"{base_url}/{kind}/{self._tickets.issue(request)}"


def _check_streams(what: str, *, stdin: bool, stdout: bool, stderr: bool, tty: bool) -> None:
    if not (stdin or stdout or stderr):
        raise InvalidArgumentError(f"{what}: one of stdin, stdout and stderr must be set")
    if tty and stderr:
        raise InvalidArgumentError(
            f"{what}: tty and stderr cannot both be set: a terminal has one output"
        )
