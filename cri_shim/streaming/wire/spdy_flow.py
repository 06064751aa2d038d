"""SPDY's windows, for peers that have them and for those that don't.

Go's spdystream, which is nearly every peer, sends no WINDOW_UPDATE, heeds none and lets TCP push back: against it,
windows that never open would stall every stream. So each direction goes by what is seen:

- *Sending* is bounded by a stream's window once the peer spoke of windows (SETTINGS or WINDOW_UPDATE), and by the
  session's once the peer updated that one. It is not once the peer has sent more than it was granted: what it says of
  windows is then behind all that, which may wait for the very output that would wait for those words.
- *Receiving*: a peer that overran its window before it was granted more doesn't count, and is granted nothing. One that
  counts stops at the window's end; it is granted the next once the application consumed this one. Who was granted
  something goes on being granted: a peer that counts only once it hears of windows has overrun its first by then, and
  would wait for ever.

SPDY protocol draft 3.1 §2.6.8.
"""

from __future__ import annotations

from dataclasses import dataclass, field

INITIAL_WINDOW = 64 << 10
"""Of each stream, and of the session."""
MAX_WINDOW = 0x7FFFFFFF
GRANT_BYTES = 192 << 10
"""What a peer that counts is granted at a time: less than a session holds before it stops listening, since the peer's
own grants would be behind what is not listened to, and each could wait for the other."""


@dataclass(slots=True)
class Window:
    """Both directions of a stream, or of the session; counts of bytes."""

    spent: int = 0
    """What was sent less what the peer added: it may be more than the window before the peer spoke of windows."""
    granted: int = INITIAL_WINDOW
    """What the peer may send, in all."""
    received: int = 0
    consumed: int = 0


@dataclass(slots=True)
class FlowControl:
    """The session's window, and what is known of the peer."""

    session: Window = field(default_factory=Window)
    initial_window: int = INITIAL_WINDOW
    """Of streams, as the peer set it; the session's can't be set."""
    peer_counts: bool = True
    peer_has_overrun: bool = False
    """Whether it sent more than it was granted, ever."""
    has_granted: bool = False
    """Whether the peer has heard of windows from us."""
    peer_has_stream_windows: bool = False
    peer_has_session_window: bool = False

    def limit(self, window: Window, size: int) -> int:
        """How many of `size` bytes may be sent on the stream with this window."""
        if self.peer_has_overrun:
            return size
        if self.peer_has_stream_windows:
            size = min(size, self.initial_window - window.spent)
        if self.peer_has_session_window:
            size = min(size, INITIAL_WINDOW - self.session.spent)
        return max(size, 0)

    def sent(self, window: Window, size: int) -> None:
        """These bytes were sent on the stream."""
        window.spent += size
        self.session.spent += size

    def received(self, window: Window, size: int) -> bool:
        """The peer sent these bytes on the stream; whether sending is bounded no longer since then."""
        window.received += size
        self.session.received += size
        if window.received <= window.granted and self.session.received <= self.session.granted:
            return False
        self.peer_counts = self.has_granted
        is_new, self.peer_has_overrun = not self.peer_has_overrun, True
        return is_new

    def received_for_nobody(self, size: int) -> None:
        """The peer sent these bytes on a stream that is over; they came out of the session's window all the same."""
        self.session.received += size
        self.session.consumed += size

    def consumed(self, window: Window, size: int) -> None:
        """The application is done with these bytes of the stream."""
        size = min(size, window.received - window.consumed)
        window.consumed += size
        self.session.consumed += size

    def grant(self, window: Window) -> int:
        """What to send as WINDOW_UPDATE of this window, 0 for none."""
        if not self.peer_counts or window.consumed < window.granted:
            return 0
        # More than that where the window was overrun: what the peer may have beyond what was consumed is what counts.
        delta = window.consumed - window.granted + GRANT_BYTES
        window.granted += delta
        self.has_granted = True
        return delta

    def set_initial(self, size: int) -> None:
        """The peer set the initial window: those of open streams change by the difference, too."""
        self.peer_has_stream_windows = True
        self.initial_window = min(size, MAX_WINDOW)

    def widened(self, window: Window, delta: int) -> bool:
        """The peer widened a stream's window; whether it is still of an allowed size."""
        self.peer_has_stream_windows = True
        window.spent -= delta
        return self.initial_window - window.spent <= MAX_WINDOW

    def session_widened(self, delta: int) -> bool:
        """The peer widened the session's window; whether it is still of an allowed size."""
        self.peer_has_session_window = True
        self.session.spent -= delta
        return INITIAL_WINDOW - self.session.spent <= MAX_WINDOW
