"""A bound that many have in common, and what one of them can take of it."""

from __future__ import annotations

from cri_shim.streaming.wire.shares import Share, Shares


def test_nobody_takes_more_than_a_share_and_all_no_more_than_there_is() -> None:
    shares = Shares(5, 3)
    assert [shares.take("a") for _ in range(4)] == [True, True, True, False]
    assert shares.used < shares.total
    assert [shares.take("b") for _ in range(3)] == [True, True, False]
    assert shares.is_full
    shares.give("a")
    assert shares.take("b")
    assert shares.used == 5


def test_who_has_given_all_back_is_forgotten() -> None:
    shares = Shares(5, 3)
    for owner in "abc":
        assert shares.take(owner)
        shares.give(owner)
    assert shares.used == 0
    assert not shares.owners


def test_a_refusal_remembers_nobody() -> None:
    shares = Shares(1, 1)
    assert shares.take("a")
    assert not any(shares.take(f"stranger {n}") for n in range(10))
    assert shares.owners == ("a",)


def test_a_user_has_its_own_bound_and_gives_back_what_it_took_once() -> None:
    shares = Shares(10, 5)
    first, second = Share(shares, "pod", 3), Share(shares, "pod", 3)
    assert [first.take() for _ in range(4)] == [True, True, True, False]
    assert [second.take() for _ in range(4)] == [True, True, False, False]
    first.give()
    assert second.take()
    first.close()
    first.close()
    assert shares.used == 3
    second.close()
    assert shares.used == 0
