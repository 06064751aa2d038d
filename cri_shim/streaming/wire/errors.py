"""The wire's own errors: one for what a peer did, one for what we did too late.

Neither is seen by gRPC. A `ProtocolError` of the request head becomes an HTTP answer; behind the upgrade, machines turn
it into their protocol's last frame and a closing event themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class ProtocolError(Exception):
    """The peer broke the protocol, or asked for what isn't offered."""

    def __init__(
        self, message: str, *, http_status: int = 400, headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.headers = tuple(headers)
        """What the HTTP answer says besides: the protocols offered, for instance."""


class StreamClosedError(Exception):
    """Our half of this stream is closed, or the stream is gone: what EPIPE is to a pipe."""
