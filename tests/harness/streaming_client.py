"""Blocking clients of the streaming server for every protocol, with deadlines, over real sockets.

Their framing is the client role of the wire's own machines; crictl, in the conformance tests, is the judge of those.
As Go's clients do, they never widen a window: TCP alone holds the server back.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import time
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from cri_shim.streaming.wire.channels import ChannelConnection, ChannelData, ConnectionEnded
from cri_shim.streaming.wire.errors import StreamClosedError
from cri_shim.streaming.wire.spdy import SpdyConnection
from cri_shim.streaming.wire.spdy_events import (
    DataReceived,
    SessionEnded,
    StreamEnded,
    StreamReset,
)
from cri_shim.streaming.wire.tunnel import TunnelledSpdyConnection
from cri_shim.streaming.wire.websocket import WebSocketConnection

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping
    from types import TracebackType

TIMEOUT_S = 15.0
CHANNELS = ("stdin", "stdout", "stderr", "error", "resize")
V4 = "v4.channel.k8s.io"
V5 = "v5.channel.k8s.io"
SPDY_PORT_FORWARD = "portforward.k8s.io"
TUNNEL = "SPDY/3.1+portforward.k8s.io"


class RefusedError(Exception):
    """The server answered something else than 101."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status
        self.text = text


def mask_key() -> bytes:
    return os.urandom(4)


def dial(
    url: str,
    headers: Mapping[str, str],
    *,
    method: str = "GET",
    tls: ssl.SSLContext | None = None,
) -> tuple[socket.socket, bytes]:
    """Send the request; the socket behind the 101, and what came with it. Raises: RefusedError."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    sock = socket.create_connection((parts.hostname, parts.port or 80), timeout=TIMEOUT_S)
    try:
        if tls is not None:
            sock = tls.wrap_socket(sock, server_hostname=parts.hostname)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        lines = [f"{method} {target} HTTP/1.1", f"Host: {parts.netloc}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = b""
        while b"\r\n\r\n" not in answer and (data := sock.recv(65536)):
            answer += data
        head, _, behind = answer.partition(b"\r\n\r\n")
        status = int(head.split()[1]) if head else 0
        if status != 101:
            while data := sock.recv(65536):
                behind += data
            raise RefusedError(status, behind.decode())
    except BaseException:
        sock.close()
        raise
    return sock, behind


def spdy_headers(protocol: str) -> dict[str, str]:
    named = {"X-Stream-Protocol-Version": protocol} if protocol else {}
    return {"Connection": "Upgrade", "Upgrade": "SPDY/3.1", **named}


def websocket_headers(protocol: str) -> dict[str, str]:
    named = {"Sec-WebSocket-Protocol": protocol} if protocol else {}
    key = base64.b64encode(os.urandom(16)).decode()
    return {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
        **named,
    }


class _Client:
    """A socket and the machine that makes sense of it."""

    def __init__(self, sock: socket.socket, behind: bytes, machine: Any) -> None:
        self.sock = sock
        self.machine = machine
        self.closed = False
        """The server said that it is over, or hung up."""
        self._behind = behind

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.sock.close()

    def flush(self) -> None:
        for buffer in self.machine.data_to_send():
            self.sock.sendall(buffer)

    def receive(self, timeout_s: float = TIMEOUT_S) -> None:
        """Take what comes next. Raises: TimeoutError."""
        if not self._behind:
            self.sock.settimeout(timeout_s)
            try:
                self._behind = self.sock.recv(1 << 18)
            except ConnectionResetError:
                self._behind = b""
            finally:
                self.sock.settimeout(TIMEOUT_S)
            if not self._behind:
                self.closed = True
                return
        data, self._behind = self._behind, b""
        events = self.machine.receive_data(data)
        while self.machine.has_more:
            events += self.machine.receive_data(b"")
        for event in events:
            self.take(event)
        if not self.closed:
            self.flush()

    def send_spdy(self, stream_id: int, data: bytes) -> None:
        """Send on a stream, waiting while the server's window is full."""
        rest = memoryview(data)
        while True:
            rest = rest[self.machine.send_data(stream_id, rest) :]
            self.flush()
            if not rest:
                return
            self.receive()

    def take(self, event: Any) -> None:
        raise NotImplementedError

    def until(self, condition: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
        """Receive until `condition` holds. Raises: TimeoutError, AssertionError at the end of the session."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert not self.closed, f"the session ended: {vars(self)}"
            self.receive(max(deadline - time.monotonic(), 0.001))

    def until_closed(self, timeout_s: float = TIMEOUT_S) -> Self:
        self.until(lambda: self.closed, timeout_s)
        return self


class RemoteCommandClient(_Client):
    """An exec or attach; `transport` is spdy or websocket."""

    def __init__(
        self,
        url: str,
        transport: str = "spdy",
        *,
        protocol: str = V4,
        stdin: bool = False,
        tty: bool = False,
        stdout: bool = True,
        stderr: bool = True,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.outputs: dict[str, bytearray] = {name: bytearray() for name in CHANNELS}
        self.ended: set[str] = set()
        self.ids: dict[str, int] = {}
        """Of the streams of SPDY, by channel."""
        self._is_spdy = transport == "spdy"
        if self._is_spdy:
            sock, behind = dial(url, spdy_headers(protocol), method="POST", tls=tls)
            super().__init__(sock, behind, SpdyConnection(client=True))
            wanted = {"error": True, "stdin": stdin, "stdout": stdout, "stderr": stderr and not tty}
            for name in [*(n for n, on in wanted.items() if on), *(["resize"] if tty else [])]:
                self.ids[name] = self.machine.open_stream({"streamtype": name})
            self.flush()
        else:
            sock, behind = dial(url, websocket_headers(protocol), tls=tls)
            connection = ChannelConnection(protocol, WebSocketConnection(mask_key=mask_key))
            super().__init__(sock, behind, connection)

    @property
    def stdout(self) -> bytes:
        return bytes(self.outputs["stdout"])

    @property
    def stderr(self) -> bytes:
        return bytes(self.outputs["stderr"])

    @property
    def status(self) -> dict[str, Any]:
        """The Status document, once there is one."""
        document: dict[str, Any] = json.loads(self.outputs["error"] or b"{}")
        return document

    @property
    def exit_code(self) -> int | None:
        """What the document says; None without one."""
        status = self.status
        if status.get("status") == "Success":
            return 0
        causes = status.get("details", {}).get("causes", [])
        return next((int(c["message"]) for c in causes if c.get("reason") == "ExitCode"), None)

    def write(self, data: bytes, channel: str = "stdin") -> None:
        if self._is_spdy:
            self.send_spdy(self.ids[channel], data)
        else:
            self.machine.send(CHANNELS.index(channel), data)
            self.flush()

    def end_stdin(self) -> None:
        if self._is_spdy:
            self.machine.end(self.ids["stdin"])
        else:
            self.machine.end(CHANNELS.index("stdin"))
        self.flush()

    def resize(self, width: int, height: int) -> None:
        self.write(json.dumps({"Width": width, "Height": height}).encode() + b"\n", "resize")

    def take(self, event: Any) -> None:
        match event:
            case DataReceived(stream_id, data):
                name = next(n for n, i in self.ids.items() if i == stream_id)
                self.outputs[name] += data
            case StreamEnded(stream_id):
                self.ended |= {n for n, i in self.ids.items() if i == stream_id}
            case ChannelData(channel, data):
                self.outputs[CHANNELS[channel]] += data
            case SessionEnded() | ConnectionEnded():
                self.closed = True


class PortForwardClient(_Client):
    """A port-forward over SPDY, plain or in a WebSocket."""

    def __init__(
        self, url: str, transport: str = "spdy", *, tls: ssl.SSLContext | None = None
    ) -> None:
        if transport == "spdy":
            sock, behind = dial(url, spdy_headers(SPDY_PORT_FORWARD), method="POST", tls=tls)
            super().__init__(sock, behind, SpdyConnection(client=True))
        else:
            sock, behind = dial(url, websocket_headers(TUNNEL), tls=tls)
            super().__init__(sock, behind, TunnelledSpdyConnection(mask_key=mask_key))
        self.received: dict[int, bytearray] = {}
        """By data stream."""
        self.errors: dict[int, bytearray] = {}
        """By data stream, what came on its error stream."""
        self.ended: set[int] = set()
        self.reset: set[int] = set()
        self._data_of: dict[int, int] = {}
        self._requests = 0

    def connect(self, port: int) -> int:
        """Open a connection; its id."""
        request_id, self._requests = str(self._requests), self._requests + 1
        headers = {"port": str(port), "requestid": request_id}
        error_id = self.machine.open_stream({"streamtype": "error", **headers})
        self.machine.end(error_id)
        data_id: int = self.machine.open_stream({"streamtype": "data", **headers})
        self.received[data_id], self.errors[data_id] = bytearray(), bytearray()
        self._data_of[error_id] = data_id
        self.flush()
        return data_id

    def write(self, connection: int, data: bytes) -> None:
        self.send_spdy(connection, data)

    def end(self, connection: int) -> None:
        self.machine.end(connection)
        self.flush()

    def give_up(self, connection: int) -> None:
        """Reset it."""
        self.machine.reset(connection)
        self.flush()

    def is_over(self, connection: int) -> bool:
        return connection in self.ended or connection in self.reset

    def ask(self, port: int, data: bytes) -> bytes:
        """Send, half-close, and read to the end."""
        connection = self.connect(port)
        try:
            self.write(connection, data)
            self.end(connection)
        except StreamClosedError:
            pass
        self.until(lambda: self.is_over(connection))
        return bytes(self.received[connection])

    def take(self, event: Any) -> None:
        match event:
            case DataReceived(stream_id, data):
                if stream_id in self._data_of:
                    self.errors[self._data_of[stream_id]] += data
                else:
                    self.received[stream_id] += data
            case StreamEnded(stream_id):
                self.ended.add(stream_id)
            case StreamReset(stream_id, _):
                self.reset.add(stream_id)
            case SessionEnded():
                self.closed = True


class ChannelPairsClient(_Client):
    """A port-forward over the older channels of a WebSocket: one connection for each port of the request."""

    def __init__(self, url: str) -> None:
        sock, behind = dial(url, websocket_headers(V4))
        connection = ChannelConnection(V4, WebSocketConnection(mask_key=mask_key))
        super().__init__(sock, behind, connection)
        self.received: dict[int, bytearray] = {}
        """By channel; each begins with two bytes that repeat the port."""

    def write(self, channel: int, data: bytes) -> None:
        self.machine.send(channel, data)
        self.flush()

    def take(self, event: Any) -> None:
        match event:
            case ChannelData(channel, data):
                self.received.setdefault(channel, bytearray()).extend(data)
            case ConnectionEnded():
                self.closed = True
