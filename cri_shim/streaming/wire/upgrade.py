"""Negotiate the protocol of a request's upgrade: framing and subprotocol, with the 101 response.

Rules:
- The client's order of preference decides among the protocols on offer.
- SPDY clients list subprotocols in `X-Stream-Protocol-Version` (repeated, or as a list), WebSocket clients in
  `Sec-WebSocket-Protocol`. A client that lists none is old: it gets the first version, and no header in the response.
- Without a match the response is 403 with the protocols on offer, as from Go's servers. Clients read it and retry with
  another protocol.
- Port-forward with SPDY in WebSocket messages has two names: Kubernetes uses `SPDY/3.1+portforward.k8s.io`, KEP-4006
  `v2.portforward.k8s.io`. The protocol is the same.

RFC 6455 §4.2 for the WebSocket handshake.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from cri_shim.streaming.wire.errors import ProtocolError
from cri_shim.streaming.wire.http1 import switching_protocols

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cri_shim.streaming.wire.http1 import Request

V1 = "channel.k8s.io"
V2 = "v2.channel.k8s.io"
V3 = "v3.channel.k8s.io"
V4 = "v4.channel.k8s.io"
V5 = "v5.channel.k8s.io"
V1_BASE64 = "base64.channel.k8s.io"
V4_BASE64 = "v4.base64.channel.k8s.io"
PORT_FORWARD = "portforward.k8s.io"
PORT_FORWARD_TUNNEL = "SPDY/3.1+portforward.k8s.io"
PORT_FORWARD_TUNNEL_KEP = "v2.portforward.k8s.io"

SPDY_REMOTE_COMMAND = (V5, V4, V3, V2, V1)
"""v5 differs from v4 only in WebSocket; clients request it here as well."""
WEBSOCKET_REMOTE_COMMAND = (V5, V4, V4_BASE64, V1, V1_BASE64)
SPDY_PORT_FORWARD = (PORT_FORWARD,)
WEBSOCKET_PORT_FORWARD = (PORT_FORWARD_TUNNEL, PORT_FORWARD_TUNNEL_KEP, V4, V4_BASE64)

_SPDY = "SPDY/3.1"
_STREAM_PROTOCOL = "X-Stream-Protocol-Version"
_ACCEPTED_STREAM_PROTOCOLS = "X-Accepted-Stream-Protocol-Versions"
_WEBSOCKET_VERSION = "13"
_WEBSOCKET_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_MAX_QUOTED = 512


class Framing(StrEnum):
    """The framing of the bytes after the 101 response."""

    SPDY = "spdy"
    CHANNELS = "websocket"
    """WebSocket messages that begin with a channel number."""
    TUNNEL = "websocket-spdy"
    """SPDY in WebSocket messages."""


@dataclass(frozen=True, slots=True)
class Upgrade:
    """The negotiated protocol, and the response to send."""

    framing: Framing
    protocol: str
    response: bytes


def negotiate_remote_command(request: Request) -> Upgrade:
    """Negotiate the protocol of an exec or attach.

    Raises: ProtocolError with the HTTP status of the response.
    """
    if _wants_websocket(request):
        return _websocket(request, WEBSOCKET_REMOTE_COMMAND, unnamed=V1)
    return _spdy(request, SPDY_REMOTE_COMMAND, unnamed=V1)


def negotiate_port_forward(request: Request) -> Upgrade:
    """Negotiate the protocol of a port-forward.

    Raises: ProtocolError with the HTTP status of the response.
    """
    if _wants_websocket(request):
        return _websocket(request, WEBSOCKET_PORT_FORWARD, unnamed=V4)
    return _spdy(request, SPDY_PORT_FORWARD, unnamed=PORT_FORWARD)


def _wants_websocket(request: Request) -> bool:
    if request.http_version == "1.0" or not request.has_token("connection", "upgrade"):
        # An HTTP/1.0 request's Upgrade must be ignored (RFC 9110 §7.8).
        raise ProtocolError("unable to upgrade: the request has no `Connection: Upgrade`")
    if request.has_token("upgrade", "websocket"):
        return True
    if request.has_token("upgrade", _SPDY.lower()):
        return False
    raise ProtocolError(f"unable to upgrade: `Upgrade` must be websocket or {_SPDY}")


def _spdy(request: Request, offered: Sequence[str], *, unnamed: str) -> Upgrade:
    if request.method not in ("GET", "POST"):
        raise ProtocolError(
            f"{request.method} can't be upgraded to {_SPDY}",
            http_status=405,
            headers=[("Allow", "GET, POST")],
        )
    asked = request.list_named(_STREAM_PROTOCOL.lower())
    if not asked:
        return Upgrade(Framing.SPDY, unnamed, switching_protocols(_SPDY))
    chosen = _choose(asked, offered, [(_ACCEPTED_STREAM_PROTOCOLS, name) for name in offered])
    return Upgrade(
        Framing.SPDY, chosen, switching_protocols(_SPDY, [(_STREAM_PROTOCOL, chosen)])
    )  # fmt: skip


def _websocket(request: Request, offered: Sequence[str], *, unnamed: str) -> Upgrade:
    if request.method != "GET":
        raise ProtocolError(
            f"{request.method} can't be upgraded to a WebSocket: use GET",
            http_status=405,
            headers=[("Allow", "GET")],
        )
    if request.list_named("sec-websocket-version") != [_WEBSOCKET_VERSION]:
        raise ProtocolError(
            f"Sec-WebSocket-Version must be {_WEBSOCKET_VERSION}",
            http_status=426,
            headers=[("Upgrade", "websocket"), ("Sec-WebSocket-Version", _WEBSOCKET_VERSION)],
        )
    headers = [("Sec-WebSocket-Accept", _accept(request))]
    asked = request.list_named("sec-websocket-protocol")
    chosen = unnamed
    if asked:
        chosen = _choose(asked, offered, [])
        headers.append(("Sec-WebSocket-Protocol", chosen))
    tunnel = chosen in (PORT_FORWARD_TUNNEL, PORT_FORWARD_TUNNEL_KEP)
    return Upgrade(
        Framing.TUNNEL if tunnel else Framing.CHANNELS,
        chosen,
        switching_protocols("websocket", headers),
    )


def _choose(
    asked: Sequence[str], offered: Sequence[str], headers: Sequence[tuple[str, str]]
) -> str:
    for name in asked:
        if name in offered:
            return name
    raise ProtocolError(
        f"unable to upgrade: the client supports {', '.join(asked)[:_MAX_QUOTED]!a}; "
        f"this server accepts {', '.join(offered)}",
        http_status=403,
        headers=headers,
    )


def _accept(request: Request) -> str:
    keys = request.headers_named("sec-websocket-key")
    try:
        nonces = [base64.b64decode(key, validate=True) for key in keys]
    except (binascii.Error, ValueError):
        nonces = []
    if len(nonces) != 1 or len(nonces[0]) != 16:
        raise ProtocolError("Sec-WebSocket-Key must occur once, with 16 bytes in base64")
    digest = hashlib.sha1((keys[0] + _WEBSOCKET_GUID).encode("latin-1"), usedforsecurity=False)
    return base64.b64encode(digest.digest()).decode("ascii")
