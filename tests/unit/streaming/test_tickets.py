"""Tickets, with a clock of our own."""

from __future__ import annotations

import re

import pytest

from cri_shim.errors import ResourceExhaustedError
from cri_shim.streaming import tickets as module
from cri_shim.streaming.backend import AttachRequest, ExecRequest, PortForwardRequest
from cri_shim.streaming.tickets import MAX_WAITING, MAX_WAITING_OF_A_POD, Tickets

FORWARD = PortForwardRequest("pod", (80,))
EXEC = ExecRequest("c", ("true",), stdin=False, stdout=True, stderr=True, tty=False)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_token_has_128_bits_and_fits_a_url() -> None:
    tokens = {Tickets(60).issue(FORWARD) for _ in range(100)}
    assert len(tokens) == 100
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{22}", token) for token in tokens)


def test_it_brings_its_own_request_once() -> None:
    tickets = Tickets(60)
    first, second = tickets.issue(FORWARD), tickets.issue(EXEC)
    assert tickets.redeem(second, ExecRequest) is EXEC
    assert tickets.redeem(second, ExecRequest) is None
    assert tickets.redeem(first, PortForwardRequest) is FORWARD
    assert len(tickets) == 0


def test_it_is_no_other_kinds_and_still_there_after_that() -> None:
    tickets = Tickets(60)
    token = tickets.issue(EXEC)
    assert tickets.redeem(token, AttachRequest) is None
    assert tickets.redeem(token, ExecRequest) is EXEC


def test_after_its_time_it_is_good_for_nothing() -> None:
    clock = Clock()
    tickets = Tickets(60, clock=clock)
    late, just = tickets.issue(EXEC), tickets.issue(EXEC)
    clock.now += 59.9
    assert tickets.redeem(just, ExecRequest) is EXEC
    clock.now += 0.2
    assert tickets.redeem(late, ExecRequest) is None


def test_a_changed_time_counts_for_new_ones() -> None:
    clock = Clock()
    tickets = Tickets(60, clock=clock)
    old = tickets.issue(EXEC)
    tickets.ttl_s = 1
    new = tickets.issue(EXEC)
    clock.now += 30
    assert tickets.redeem(new, ExecRequest) is None
    assert tickets.redeem(old, ExecRequest) is EXEC


def test_a_bounded_number_waits_and_those_past_their_time_make_room() -> None:
    clock = Clock()
    tickets = Tickets(60, clock=clock)
    for number in range(MAX_WAITING):
        tickets.issue(PortForwardRequest(f"pod {number % 5}", ()))
    with pytest.raises(ResourceExhaustedError, match="1000 streaming requests wait"):
        tickets.issue(FORWARD)
    clock.now += 61
    assert tickets.issue(FORWARD)
    assert len(tickets) == 1


def test_one_pod_leaves_tickets_to_others() -> None:
    clock = Clock()
    tickets = Tickets(60, clock=clock)
    given = [tickets.issue(PortForwardRequest("greedy", ())) for _ in range(MAX_WAITING_OF_A_POD)]
    with pytest.raises(ResourceExhaustedError, match="250 streaming requests of sandbox greedy"):
        tickets.issue(PortForwardRequest("greedy", ()))
    assert tickets.issue(FORWARD)
    assert tickets.redeem(given[0], PortForwardRequest)
    assert tickets.issue(PortForwardRequest("greedy", ()))
    clock.now += 61
    assert tickets.issue(PortForwardRequest("greedy", ()))
    assert len(tickets) == 1, "those past their time made room"


def test_what_somebody_guesses_is_no_ticket(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.TOKEN_BYTES * 8 == 128
    assert Tickets(60).redeem("", ExecRequest) is None
