"""SPDY's flow control, for peers that implement it and for those that don't.

Go's spdystream, which nearly all peers use, sends no WINDOW_UPDATE and ignores ours; it relies on TCP. If we insisted
on windows, every stream to it would stall. So each direction follows what is observed:

- *Sending* is limited by a stream's window once the peer has mentioned windows (SETTINGS or WINDOW_UPDATE), and by the
  session's window once the peer has updated that. The limits end when the peer has sent more than it was granted. Its
  WINDOW_UPDATEs are then queued behind all that data, and we may not read the data before our own output is sent: each
  side would wait for the other.
- *Receiving*: a peer that overruns its window before it was granted more does not implement windows, and is granted
  nothing. A peer that does stops at the window's end; it is granted the next one when the application has consumed this
  one. A peer that was granted something is always granted more: it may implement windows only from the first
  WINDOW_UPDATE on, and have overrun its first window by then. Without more grants it would wait for ever.

SPDY protocol draft 3.1 §2.6.8.
"""

from __future__ import annotations

from dataclasses import dataclass, field

INITIAL_WINDOW = 64 << 10
"""The initial window of each stream and of the session."""
MAX_WINDOW = 0x7FFFFFFF
GRANT_BYTES = 192 << 10
"""The size of a grant. It is less than a session buffers before it stops reading: the peer's own grants come behind the
data that we don't read, and each side could wait for the other."""


@dataclass(slots=True)
class Window:
    """Both directions of a stream or of the session, in bytes."""

    spent: int = 0
    """Bytes sent, less what the peer's updates added. It may exceed the window if the peer mentions windows late."""
    granted: int = INITIAL_WINDOW
    """The total that the peer may send."""
    received: int = 0
    consumed: int = 0


@dataclass(slots=True)
class FlowControl:
    """The session's window, and what is known about the peer."""

    session: Window = field(default_factory=Window)
    initial_window: int = INITIAL_WINDOW
    """The initial window of streams, as the peer set it. The session's is fixed."""
    peer_counts: bool = True
    peer_has_overrun: bool = False
    """Whether the peer has ever sent more than it was granted."""
    has_granted: bool = False
    """Whether we have sent the peer a WINDOW_UPDATE."""
    peer_has_stream_windows: bool = False
    peer_has_session_window: bool = False

    def limit(self, window: Window, size: int) -> int:
        """How many of `size` bytes may be sent now on the stream with this window."""
        if self.peer_has_overrun:
            return size
        if self.peer_has_stream_windows:
            size = min(size, self.initial_window - window.spent)
        if self.peer_has_session_window:
            size = min(size, INITIAL_WINDOW - self.session.spent)
        return max(size, 0)

    def sent(self, window: Window, size: int) -> None:
        """Account for bytes sent on the stream."""
        window.spent += size
        self.session.spent += size

    def received(self, window: Window, size: int) -> bool:
        """Account for bytes received on the stream; returns True if this ends the limits on sending."""
        window.received += size
        self.session.received += size
        if window.received <= window.granted and self.session.received <= self.session.granted:
            return False
        self.peer_counts = self.has_granted
        is_new, self.peer_has_overrun = not self.peer_has_overrun, True
        return is_new

    def received_for_nobody(self, size: int) -> None:
        """Account for bytes received on a stream that is over. They used up the session's window all the same."""
        self.session.received += size
        self.session.consumed += size

    def consumed(self, window: Window, size: int) -> None:
        """The application has consumed these bytes of the stream."""
        size = min(size, window.received - window.consumed)
        window.consumed += size
        self.session.consumed += size

    def grant(self, window: Window) -> int:
        """The delta to send as WINDOW_UPDATE for this window; 0 for none."""
        if not self.peer_counts or window.consumed < window.granted:
            return 0
        # More than one grant if the window was overrun: the peer needs that much beyond what was consumed.
        delta = window.consumed - window.granted + GRANT_BYTES
        window.granted += delta
        self.has_granted = True
        return delta

    def set_initial(self, size: int) -> None:
        """The peer set the initial window, which changes open streams' windows by the difference as well."""
        self.peer_has_stream_windows = True
        self.initial_window = min(size, MAX_WINDOW)

    def widened(self, window: Window, delta: int) -> bool:
        """The peer widened a stream's window; False if it exceeds the maximum."""
        self.peer_has_stream_windows = True
        window.spent -= delta
        return self.initial_window - window.spent <= MAX_WINDOW

    def session_widened(self, delta: int) -> bool:
        """The peer widened the session's window; False if it exceeds the maximum."""
        self.peer_has_session_window = True
        self.session.spent -= delta
        return INITIAL_WINDOW - self.session.spent <= MAX_WINDOW
