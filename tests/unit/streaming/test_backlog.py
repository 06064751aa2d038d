"""Bytes that wait: all of them, in their order, and never for less than they cost."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from cri_shim.streaming.backlog import MAX_BUFFERS, SMALL_BYTES, Backlog

CHUNK = 256 << 10


def drained(backlog: Backlog, step: int) -> bytes:
    said = b""
    while backlog.size:
        buffers = backlog.buffers()
        assert len(buffers) <= MAX_BUFFERS
        piece = b"".join(buffers)[:step]
        said += piece
        backlog.take(len(piece))
    return said


@given(
    st.lists(st.tuples(st.integers(0, 3 * SMALL_BYTES), st.booleans(), st.integers(0, 9000))),
    st.integers(1, 100_000),
)
def test_what_goes_in_comes_out_however_it_is_cut(
    pieces: list[tuple[int, bool, int]], step: int
) -> None:
    backlog, expected, said = Backlog(), b"", b""
    for number, (size, is_view, taken) in enumerate(pieces):
        data = bytes((number % 251,)) * size
        backlog.append(memoryview(b"\xff" * 50_000 + data)[50_000:] if is_view else data)
        expected += data
        taken = min(taken, backlog.size)
        while taken:
            piece = b"".join(backlog.buffers())[:taken]
            backlog.take(len(piece))
            said += piece
            taken -= len(piece)
        assert backlog.size == len(expected) - len(said)
        assert backlog.cost >= backlog.size
    said += drained(backlog, step)
    assert said == expected
    assert backlog.cost == 0


def test_what_is_kept_costs_no_more_than_is_charged() -> None:
    """Single bytes, each a view of a chunk that nothing else keeps; and between them what is long."""
    backlog = Backlog()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(3000):
        backlog.append(memoryview(bytes(CHUNK))[number : number + 1])
        if number % 100 == 0:
            backlog.append(memoryview(bytes(CHUNK))[: CHUNK // 3])
            backlog.append(bytes(SMALL_BYTES + 1))
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert held < 1.2 * backlog.cost
    assert backlog.cost < 1.1 * backlog.size


def test_what_was_taken_of_a_piece_costs_until_the_whole_piece_was() -> None:
    backlog = Backlog()
    backlog.append(bytes(CHUNK))
    cost = backlog.cost
    backlog.take(CHUNK - 1)
    assert (backlog.size, backlog.cost) == (1, cost)
    backlog.take(1)
    assert (backlog.size, backlog.cost) == (0, 0)


def test_what_is_long_is_kept_as_it_is() -> None:
    backlog, data = Backlog(), bytes(CHUNK)
    backlog.append(data)
    assert backlog.buffers()[0] is data
