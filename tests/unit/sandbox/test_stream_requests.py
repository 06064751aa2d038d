"""What Exec, Attach and PortForward refuse, and the URLs they give."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from cri_shim.errors import InvalidArgumentError, NotFoundError, NotReadyError, WrongStateError
from cri_shim.sandbox.store.model import ContainerStatus, SandboxStatus
from cri_shim.sandbox.stream_requests import MAX_PORTS, StreamRequests
from cri_shim.streaming.backend import AttachRequest, ExecRequest, PortForwardRequest
from cri_shim.streaming.tickets import Tickets
from tests.unit.sandbox.records import make_container, make_sandbox

if TYPE_CHECKING:
    from cri_shim.sandbox.containers import Containers
    from cri_shim.sandbox.pods import Pods
    from cri_shim.sandbox.store.store import Container, Sandbox

RUNNING = ContainerStatus(committed_at_ns=1, started_at_ns=2)


class Held:
    """Objects by ID."""

    def __init__(self, *objects: Container | Sandbox) -> None:
        self._objects = {each.id: each for each in objects}

    def find(self, key: str) -> Container | Sandbox:
        found = [each for id_, each in self._objects.items() if id_.startswith(key)]
        if not found:
            raise NotFoundError("object", key)
        return found[0]


class Node:
    def __init__(self) -> None:
        self.container = make_container(status=RUNNING)
        self.sandbox = make_sandbox(status=SandboxStatus(ready_at_ns=1))
        self.tickets = Tickets(60)
        self.base_url: str | None = "http://127.0.0.1:10350"
        self.streams = StreamRequests(
            cast("Containers", Held(self.container)),
            cast("Pods", Held(self.sandbox)),
            self.tickets,
            lambda: self.base_url,
        )

    def exec(self, *command: str, tty: bool = False, stderr: bool = True, any_: bool = True) -> str:
        return self.streams.exec(
            self.container.id, command, stdin=False, stdout=any_, stderr=stderr, tty=tty
        )


def test_a_url_is_the_servers_and_its_ticket_says_all_that_was_asked() -> None:
    node = Node()
    url = node.streams.exec(
        node.container.id[:6], ["ls", "-l"], stdin=True, stdout=True, stderr=False, tty=True
    )
    base, _, token = url.rpartition("/")
    assert base == "http://127.0.0.1:10350/exec"
    assert node.tickets.redeem(token, ExecRequest) == ExecRequest(
        node.container.id, ("ls", "-l"), True, True, False, True, node.sandbox.id
    )
    url = node.streams.attach(node.container.id, stdin=False, stdout=True, stderr=True, tty=False)
    base, _, token = url.rpartition("/")
    assert base.endswith("/attach")
    assert node.tickets.redeem(token, AttachRequest) == AttachRequest(
        node.container.id, False, True, True, False, node.sandbox.id
    )
    url = node.streams.port_forward(node.sandbox.id, [80, 443])
    base, _, token = url.rpartition("/")
    assert base.endswith("/portforward")
    asked = node.tickets.redeem(token, PortForwardRequest)
    assert asked == PortForwardRequest(node.sandbox.id, (80, 443))


def test_no_stream_at_all_and_a_terminal_with_two_outputs_are_refused() -> None:
    node = Node()
    with pytest.raises(InvalidArgumentError, match="one of stdin, stdout and stderr"):
        node.exec("true", stderr=False, any_=False)
    with pytest.raises(InvalidArgumentError, match="tty and stderr"):
        node.exec("true", tty=True)
    with pytest.raises(InvalidArgumentError, match="NUL"):
        node.exec("a\0b")
    assert len(node.tickets) == 0


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_what_is_no_port_is_refused(port: int) -> None:
    node = Node()
    with pytest.raises(InvalidArgumentError, match="is not a port number"):
        node.streams.port_forward(node.sandbox.id, [80, port])


def test_more_ports_than_anybody_needs_are_refused() -> None:
    node = Node()
    assert node.streams.port_forward(node.sandbox.id, range(1, MAX_PORTS + 1))
    with pytest.raises(InvalidArgumentError, match="1001 entries; the limit is 1000"):
        node.streams.port_forward(node.sandbox.id, range(1, MAX_PORTS + 2))


def test_only_what_runs_can_be_reached() -> None:
    node = Node()
    node.container.status = ContainerStatus(committed_at_ns=1)
    with pytest.raises(WrongStateError, match="not running"):
        node.exec("true")
    with pytest.raises(WrongStateError, match="not running"):
        node.streams.attach(node.container.id, stdin=True, stdout=True, stderr=True, tty=False)
    node.sandbox.status = SandboxStatus(ready_at_ns=1, stopped_at_ns=2)
    with pytest.raises(WrongStateError, match="not ready"):
        node.streams.port_forward(node.sandbox.id, [])
    with pytest.raises(NotFoundError):
        node.streams.port_forward("nobody", [])


def test_without_a_server_there_is_no_url() -> None:
    node = Node()
    node.base_url = None
    with pytest.raises(NotReadyError, match="starting or stopping; retry"):
        node.exec("true")
    assert len(node.tickets) == 0
