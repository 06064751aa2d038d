from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.config.document import MAX_BYTES, parse_document
from cri_shim.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing\n", None),
        ("a: 1", {"a": 1}),
        ("a: -5", {"a": -5}),
        ("a: 1.5", {"a": 1.5}),
        ("a: true", {"a": True}),
        ("a:", {"a": None}),
        ("a: [x, 'y']", {"a": ["x", "y"]}),
        ("a: '1'", {"a": "1"}),
        ("1: x", {"1": "x"}),
        ("{a: {b: c}}", {"a": {"b": "c"}}),
    ],
)
def test_values_have_the_types_they_look_like(text: str, value: object) -> None:
    assert parse_document(text, name="f") == value


@pytest.mark.parametrize(
    "word", ["off", "on", "yes", "No", "y", "0660", "0o17", "12:30", "2026-01-01"]
)
def test_words_that_yaml_1_1_would_twist_stay_words(word: str) -> None:
    assert parse_document(f"a: {word}", name="f") == {"a": word}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1\nb: 2\na: 3", "f: line 3, column 1: duplicate key 'a' in this mapping"),
        ("a: &x 1\nb: *x", "aliases (*name) are not supported"),
        ("a: &x [*x]", "aliases (*name) are not supported"),
        ("a: !!python/object:os.system x", "tags (tag:yaml.org,2002:python"),
        ("a: !mine x", "tags (!mine) are not supported"),
        ("a: [", "is not YAML"),
        ("a: b: c", "f: line 1, column 5: is not YAML"),
        ("a: 1\n---\nb: 2", "is not YAML"),
        ("? [a]\n: b", "a key must be a word"),
        ("a: \x00", "is not YAML"),
        ("[" * 50 + "]" * 50, "is nested deeper than 32 levels"),
        ("[" * 5000, "is nested deeper than 32 levels"),
        ("a: " + "x" * MAX_BYTES, "has more than"),
    ],
)
def test_traps_are_refused_with_their_place(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_document(text, name="f")
    assert complaint in str(caught.value)
    assert str(caught.value).startswith("f: ")
    assert "\n" not in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_gives_a_value_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        parse_document(text, name="f")
