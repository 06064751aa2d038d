"""Comparing snapshots: what counts as a leak, and what does not."""

from __future__ import annotations

from collections import Counter

from tests.harness.leaks import Leak, LeakError, Snapshot


def snapshot(**kinds: list[str]) -> Snapshot:
    return Snapshot({kind: Counter(names) for kind, names in kinds.items()})


def test_same_things_are_no_leak() -> None:
    assert snapshot(link=["lo", "eth0"]).leaks_in(snapshot(link=["eth0", "lo"])) == []


def test_what_went_away_is_no_leak() -> None:
    assert snapshot(link=["lo", "veth0"]).leaks_in(snapshot(link=["lo"])) == []


def test_new_thing_is_a_leak_of_its_kind() -> None:
    assert snapshot(link=["lo"]).leaks_in(snapshot(link=["lo", "veth0"])) == [Leak("link", "veth0")]


def test_thing_of_a_kind_that_was_empty_is_a_leak() -> None:
    assert snapshot().leaks_in(snapshot(file=["/a"])) == [Leak("file", "/a")]


def test_one_more_of_the_same_is_a_leak_and_several_are_counted() -> None:
    before = snapshot(descriptor=["pipe"])
    assert before.leaks_in(snapshot(descriptor=["pipe"] * 2)) == [Leak("descriptor", "pipe")]
    assert before.leaks_in(snapshot(descriptor=["pipe"] * 4)) == [
        Leak("descriptor", "pipe (3 more than before)")
    ]


def test_descriptors_of_a_daemon_that_was_not_there_before_are_not_compared() -> None:
    after = Snapshot({"descriptor of daemon new": Counter(["pipe"])})
    assert snapshot().leaks_in(after) == []


def test_kinds_can_be_taken_from_a_later_snapshot() -> None:
    before, later = snapshot(link=["lo"]), snapshot(link=["lo", "br0"], file=["/a"])
    merged = before.with_kinds_of(later, "file")
    assert merged.leaks_in(later) == [Leak("link", "br0")]


def test_error_names_every_leak_on_a_line_of_its_own() -> None:
    error = LeakError([Leak("link", "veth0"), Leak("mount", "/run/x (tmpfs)")])
    assert str(error).splitlines() == [
        "left behind:",
        "  link: veth0",
        "  mount: /run/x (tmpfs)",
    ]
