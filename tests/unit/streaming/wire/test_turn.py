"""What came and was not looked at is there in the next turn, once."""

from __future__ import annotations

from cri_shim.streaming.wire.turn import COST_PER_TURN, Turn


def test_what_is_left_comes_first_in_the_next_turn() -> None:
    turn = Turn()
    assert bytes(turn.take(b"abcdef")) == b"abcdef"
    turn.leave(memoryview(b"def"))
    assert turn.has_more
    assert bytes(turn.take(b"")) == b"def"
    assert bytes(turn.take(b"")) == b""
    turn.leave(memoryview(b"def"))
    assert bytes(turn.take(b"gh")) == b"defgh"
    assert bytes(turn.take(b"")) == b""


def test_a_turn_begins_with_what_a_turn_has() -> None:
    turn = Turn()
    turn.left = -3
    turn.begin()
    assert turn.left == COST_PER_TURN


def test_what_is_forgotten_is_not_there() -> None:
    turn = Turn()
    turn.leave(memoryview(b"x"))
    turn.forget()
    assert not turn.has_more
    assert bytes(turn.take(b"y")) == b"y"
