"""Identifiers: what is one, what abbreviates one."""

from __future__ import annotations

import pytest

from cri_shim.ids import ID_LENGTH, is_id, is_id_prefix, new_id


def test_a_new_id_is_one_and_no_two_are_the_same() -> None:
    made = {new_id() for _ in range(100)}
    assert len(made) == 100
    assert all(is_id(one) and len(one) == ID_LENGTH for one in made)


@pytest.mark.parametrize(
    "text", ["", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 64 + "\n", "\u0663" * 64, "." * 64]
)
def test_what_is_no_id(text: str) -> None:
    assert not is_id(text)


@pytest.mark.parametrize("text", ["0", "abc", "a" * 63, "a" * 64])
def test_what_abbreviates_an_id(text: str) -> None:
    assert is_id_prefix(text)


@pytest.mark.parametrize("text", ["", "A", "x", "a b", "a\n", "../", "a" * 65, "\u0663"])
def test_what_abbreviates_none(text: str) -> None:
    assert not is_id_prefix(text)
