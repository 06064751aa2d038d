"""The errors of the protocol machines: one for a peer's fault, one for a call of ours that comes too late.

gRPC never sees them. Before the upgrade, a `ProtocolError` becomes an HTTP response. After it, machines turn it into
their protocol's last frame and a closing event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class ProtocolError(Exception):
    """The peer violated the protocol, or requested something that is not offered."""

    def __init__(
        self, message: str, *, http_status: int = 400, headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.headers = tuple(headers)
        """Headers for the HTTP response, such as the protocols on offer."""


class StreamClosedError(Exception):
    """The stream is gone, or our half of it is closed: the counterpart of EPIPE."""
