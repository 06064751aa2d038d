"""Which protocol is agreed on, and how the others are refused."""

from __future__ import annotations

import pytest

from cri_shim.streaming.wire.errors import ProtocolError
from cri_shim.streaming.wire.http1 import Request, RequestReader
from cri_shim.streaming.wire.upgrade import (
    Framing,
    Upgrade,
    negotiate_port_forward,
    negotiate_remote_command,
)

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
"""The example of RFC 6455 §1.3, with its answer."""
ACCEPT = b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"


def request(*lines: str, method: str = "GET", version: str = "1.1") -> Request:
    head = [f"{method} /exec/t HTTP/{version}", "Host: n", *lines, "", ""]
    read = RequestReader().receive_data("\r\n".join(head).encode())
    assert read is not None
    return read


def spdy(*protocols: str, method: str = "POST") -> Request:
    lines = [f"X-Stream-Protocol-Version: {protocol}" for protocol in protocols]
    return request("Connection: Upgrade", "Upgrade: SPDY/3.1", *lines, method=method)


def websocket(*protocols: str, version: str = "13", key: str = KEY, method: str = "GET") -> Request:
    lines = [f"Sec-WebSocket-Protocol: {protocol}" for protocol in protocols]
    return request(
        *("Connection: keep-alive, upgrade", "Upgrade: WebSocket"),
        *(f"Sec-WebSocket-Version: {version}", f"Sec-WebSocket-Key: {key}", *lines),
        method=method,
    )


@pytest.mark.parametrize(
    ("asked", "agreed"),
    [
        (["v4.channel.k8s.io", "v3.channel.k8s.io", "channel.k8s.io"], "v4.channel.k8s.io"),
        (["v9.channel.k8s.io, v2.channel.k8s.io", "v4.channel.k8s.io"], "v2.channel.k8s.io"),
        (["v5.channel.k8s.io", "v4.channel.k8s.io"], "v5.channel.k8s.io"),
        (["channel.k8s.io"], "channel.k8s.io"),
    ],
)
def test_spdy_takes_the_clients_first_choice_among_what_is_offered(
    asked: list[str], agreed: str
) -> None:
    upgrade = negotiate_remote_command(spdy(*asked))
    assert (upgrade.framing, upgrade.protocol) == (Framing.SPDY, agreed)
    assert upgrade.response == (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
        b"X-Stream-Protocol-Version: " + agreed.encode() + b"\r\n\r\n"
    )


def test_a_client_that_names_no_protocol_gets_the_first_version_and_no_header() -> None:
    for upgrade, protocol in [
        (negotiate_remote_command(spdy(method="GET")), "channel.k8s.io"),
        (negotiate_port_forward(spdy()), "portforward.k8s.io"),
        (negotiate_remote_command(websocket()), "channel.k8s.io"),
        (negotiate_port_forward(websocket()), "v4.channel.k8s.io"),
    ]:
        assert upgrade.protocol == protocol
        assert b"Protocol" not in upgrade.response.partition(b"\r\n")[2]


@pytest.mark.parametrize(
    ("asked", "framing"),
    [
        ("v5.channel.k8s.io", Framing.CHANNELS),
        ("v4.base64.channel.k8s.io", Framing.CHANNELS),
        ("base64.channel.k8s.io", Framing.CHANNELS),
    ],
)
def test_websocket_names_what_was_agreed(asked: str, framing: Framing) -> None:
    upgrade = negotiate_remote_command(websocket("other", asked))
    assert (upgrade.framing, upgrade.protocol) == (framing, asked)
    assert upgrade.response.startswith(b"HTTP/1.1 101 ")
    assert ACCEPT in upgrade.response
    assert f"Sec-WebSocket-Protocol: {asked}\r\n".encode() in upgrade.response


@pytest.mark.parametrize(
    ("asked", "framing"),
    [
        ("SPDY/3.1+portforward.k8s.io", Framing.TUNNEL),
        ("v2.portforward.k8s.io", Framing.TUNNEL),
        ("v4.channel.k8s.io", Framing.CHANNELS),
        ("v4.base64.channel.k8s.io", Framing.CHANNELS),
    ],
)
def test_port_forward_is_tunnelled_or_in_channels(asked: str, framing: Framing) -> None:
    upgrade = negotiate_port_forward(websocket(asked))
    assert (upgrade.framing, upgrade.protocol) == (framing, asked)


@pytest.mark.parametrize(
    ("asked", "status", "reason"),
    [
        (spdy("v9.channel.k8s.io"), 403, "v9.channel.k8s.io"),
        (spdy("portforward.k8s.io"), 403, "accepts v5.channel.k8s.io, v4"),
        (websocket("portforward.k8s.io"), 403, "accepts v5.channel.k8s.io, v4"),
        (websocket(method="POST"), 405, "GET"),
        (spdy(method="PUT"), 405, "PUT"),
        (websocket(version="8"), 426, "Sec-WebSocket-Version"),
        (websocket(version="13, 13"), 426, "Sec-WebSocket-Version"),
        (websocket(key="c2hvcnQ="), 400, "Sec-WebSocket-Key"),
        (websocket(key="not base64!"), 400, "Sec-WebSocket-Key"),
        (request(), 400, "Connection: Upgrade"),
        (request("Connection: Upgrade"), 400, "websocket or SPDY/3.1"),
        (request("Connection: Upgrade", "Upgrade: h2c"), 400, "websocket or SPDY/3.1"),
        (request("Upgrade: SPDY/3.1"), 400, "Connection: Upgrade"),
        (request("Connection: Upgrade", "Upgrade: SPDY/3.1", version="1.0"), 400, "upgrade"),
    ],
)
def test_what_cannot_be_agreed_on_is_refused(asked: Request, status: int, reason: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        negotiate_remote_command(asked)
    assert caught.value.http_status == status
    assert reason in str(caught.value)


def test_a_refused_client_reads_what_is_accepted() -> None:
    with pytest.raises(ProtocolError) as caught:
        negotiate_port_forward(spdy("v4.channel.k8s.io"))
    assert caught.value.headers == (("X-Accepted-Stream-Protocol-Versions", "portforward.k8s.io"),)


def test_every_protocol_is_a_header_value_that_needs_no_escape() -> None:
    for asked in (spdy(), websocket()):
        upgrade: Upgrade = negotiate_remote_command(asked)
        assert upgrade.response.isascii()
        assert upgrade.response.endswith(b"\r\n\r\n")
