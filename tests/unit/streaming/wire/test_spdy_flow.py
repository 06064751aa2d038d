"""Windows: what bounds sending, and when the peer is granted more."""

from __future__ import annotations

from cri_shim.streaming.wire.spdy_flow import (
    GRANT_BYTES,
    INITIAL_WINDOW,
    MAX_WINDOW,
    FlowControl,
    Window,
)


def test_a_peer_that_never_spoke_of_windows_is_sent_everything() -> None:
    flow, stream = FlowControl(), Window()
    flow.sent(stream, 10 * INITIAL_WINDOW)
    assert flow.limit(stream, 1 << 30) == 1 << 30


def test_a_peer_with_stream_windows_only_is_not_bounded_by_the_sessions() -> None:
    flow, stream = FlowControl(), Window()
    assert flow.widened(stream, 1000)
    assert flow.limit(stream, 1 << 30) == INITIAL_WINDOW + 1000
    flow.sent(stream, INITIAL_WINDOW + 1000)
    assert flow.limit(stream, 1) == 0
    assert flow.limit(Window(), 1 << 30) == INITIAL_WINDOW


def test_the_sessions_window_bounds_all_streams_together_once_it_was_updated() -> None:
    flow, one, other = FlowControl(), Window(), Window()
    flow.sent(one, INITIAL_WINDOW - 10)
    assert flow.session_widened(20)
    assert flow.limit(other, 100) == 30
    flow.sent(other, 30)
    assert flow.limit(one, 1) == flow.limit(other, 1) == 0


def test_what_was_sent_before_the_peer_spoke_counts() -> None:
    flow, stream = FlowControl(), Window()
    flow.sent(stream, 3 * INITIAL_WINDOW)
    assert flow.widened(stream, INITIAL_WINDOW)
    assert flow.limit(stream, 1) == 0
    assert flow.widened(stream, INITIAL_WINDOW + 5)
    assert flow.limit(stream, 100) == 5


def test_a_new_initial_window_changes_open_streams_by_the_difference() -> None:
    flow, stream = FlowControl(), Window()
    flow.sent(stream, 1000)
    flow.set_initial(1500)
    assert flow.limit(stream, 10**6) == 500
    flow.set_initial(500)
    assert flow.limit(stream, 10**6) == 0
    flow.set_initial(0xFFFFFFFF)
    assert flow.limit(stream, 1 << 40) == MAX_WINDOW - 1000


def test_a_window_beyond_31_bits_is_not_allowed() -> None:
    flow, stream = FlowControl(), Window()
    assert not flow.widened(stream, MAX_WINDOW)
    assert flow.session_widened(MAX_WINDOW - INITIAL_WINDOW)
    assert not flow.session_widened(1)


def test_a_peer_that_counts_is_granted_more_when_it_used_its_window_and_all_was_consumed() -> None:
    flow, stream = FlowControl(), Window()
    flow.received(stream, INITIAL_WINDOW)
    flow.consumed(stream, INITIAL_WINDOW - 1)
    assert flow.grant(stream) == 0
    flow.consumed(stream, 1)
    assert (flow.grant(stream), flow.grant(flow.session)) == (GRANT_BYTES, GRANT_BYTES)
    assert flow.grant(stream) == 0
    flow.received(stream, GRANT_BYTES)
    flow.consumed(stream, 10 * GRANT_BYTES)
    assert flow.grant(stream) == GRANT_BYTES


def test_a_peer_that_overran_its_window_does_not_count_and_is_granted_nothing() -> None:
    flow, stream = FlowControl(), Window()
    flow.received(stream, INITIAL_WINDOW + 1)
    flow.consumed(stream, INITIAL_WINDOW + 1)
    assert not flow.peer_counts
    assert flow.grant(stream) == flow.grant(flow.session) == 0


def test_a_peer_that_was_granted_something_goes_on_being_granted_though_it_overran() -> None:
    # It sent on before it heard of windows: from now on it may wait for each.
    flow, stream, other = FlowControl(), Window(), Window()
    flow.received(stream, INITIAL_WINDOW)
    flow.consumed(stream, INITIAL_WINDOW)
    assert (flow.grant(stream), flow.grant(flow.session)) == (GRANT_BYTES, GRANT_BYTES)
    flow.received(stream, GRANT_BYTES + 1000)
    flow.received(other, INITIAL_WINDOW + 70)
    flow.consumed(stream, GRANT_BYTES + 1000)
    assert flow.grant(stream) == 1000 + GRANT_BYTES
    flow.consumed(other, INITIAL_WINDOW + 70)
    assert flow.grant(other) == 70 + GRANT_BYTES
    assert flow.grant(flow.session) == 1000 + INITIAL_WINDOW + 70 + GRANT_BYTES


def test_windows_of_a_peer_that_has_overrun_ours_do_not_bound_what_it_is_sent() -> None:
    # What it says of its windows may be behind all that it sent, and that wait for what it is to be sent.
    flow, stream = FlowControl(), Window()
    flow.widened(stream, 1)
    flow.session_widened(1)
    assert not flow.received(stream, INITIAL_WINDOW)
    assert flow.limit(stream, 1 << 20) == INITIAL_WINDOW + 1
    assert flow.received(stream, 1)
    assert flow.limit(stream, 1 << 20) == 1 << 20
    assert not flow.received(stream, 1), "that is told once"


def test_bytes_for_nobody_are_given_back_to_the_session() -> None:
    flow = FlowControl()
    flow.received_for_nobody(INITIAL_WINDOW)
    assert flow.grant(flow.session) == GRANT_BYTES
