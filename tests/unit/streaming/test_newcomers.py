"""Clients that have not said what they want: few, and each with its time."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from cri_shim.streaming import newcomers
from cri_shim.streaming.newcomers import Newcomers

if TYPE_CHECKING:
    from cri_shim.streaming.connection import Connection
    from tests.fakes.clock import MovableClock


class Client:
    """As much of a connection as is looked at."""

    closed = False
    unread = False

    def has_unread(self) -> bool:
        return self.unread

    def close(self) -> None:
        self.closed = True


def client() -> Connection:
    return cast("Connection", Client())


def is_closed(connection: Connection) -> bool:
    return cast("Client", connection).closed


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> list[Connection]:
    monkeypatch.setattr(newcomers, "MAX_NEWCOMERS", 3)
    return [client() for _ in range(3)]


def test_nobody_goes_before_it_had_its_time(three: list[Connection]) -> None:
    room = Newcomers()
    for each in three:
        assert room.has_room()
        room.enter(each)
    assert not room.has_room()
    room.leave(three[1])
    assert room.has_room()


def test_the_oldest_goes_then(three: list[Connection], clock: MovableClock) -> None:
    room, more = Newcomers(), client()
    for each in three:
        room.enter(each)
    assert not room.has_room()
    clock.move(newcomers.MIN_TIME_S)
    assert room.has_room()
    room.enter(more)
    assert [is_closed(each) for each in (*three, more)] == [True, False, False, False]
    room.leave(three[0])
    assert len(room) == 3


def test_who_was_not_read_yet_has_longer(three: list[Connection], clock: MovableClock) -> None:
    room = Newcomers()
    for each in three:
        room.enter(each)
    clock.move(newcomers.MIN_TIME_S)
    cast("Client", three[0]).unread = True
    assert not room.has_room()
    room.keep(three[0])
    room.release(three[0])
    room.keep(three[1])
    room.keep(three[2])
    clock.move(newcomers.MIN_TIME_S)
    assert room.has_room(), "it was read"
    room.leave(three[0])
    late = client()
    cast("Client", late).unread = True
    room.enter(late)
    assert not room.has_room()
    clock.move(newcomers.MAX_TIME_S)
    assert room.has_room()


def test_who_is_kept_stays_and_may_have_to_go_after_that(
    three: list[Connection], clock: MovableClock
) -> None:
    room = Newcomers()
    for each in three:
        room.enter(each)
        room.keep(each)
    assert not room.has_room(), "all have said what they want"
    room.release(three[2])
    clock.move(newcomers.MIN_TIME_S)
    assert room.has_room()
    room.enter(client())
    assert [is_closed(each) for each in three] == [False, False, True]
    room.keep(three[2])  # it was put out meanwhile
    room.release(three[2])
    assert len(room) == 3


def test_closing_hangs_up_on_all(three: list[Connection]) -> None:
    room = Newcomers()
    for each in three:
        room.enter(each)
    room.keep(three[0])
    room.close()
    assert all(map(is_closed, three))
