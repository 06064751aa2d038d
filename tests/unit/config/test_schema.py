from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim.config.model import Config, HandlerSettings, Section, StreamingSettings, Ulimit
from cri_shim.config.schema import allowed, keys_of

if TYPE_CHECKING:
    import msgspec


def test_keys_come_in_the_order_of_their_definition() -> None:
    assert [key.name for key in keys_of(Config)][:4] == ["root", "state", "listen", "socket"]


def test_a_key_knows_the_files_name_and_the_codes_name() -> None:
    names = {key.name: key.attribute for key in keys_of(StreamingSettings)}
    assert names["token_ttl"] == "token_ttl_s"


def test_only_the_path_of_a_handler_is_required() -> None:
    assert [key.name for key in keys_of(HandlerSettings) if key.required] == ["path"]
    assert all(key.required for key in keys_of(Ulimit))


def test_sections_are_frozen_and_take_no_unknown_field() -> None:
    def sections(cls: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
        inner = [
            s for key in keys_of(cls) for s in (key.section, key.entry_section) if s is not None
        ]
        return [cls, *(found for section in inner for found in sections(section))]

    for section in sections(Config):
        assert issubclass(section, Section)
        assert section.__struct_config__.frozen
        assert section.__struct_config__.forbid_unknown_fields


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("address", "an IPv4 or IPv6 address"),
        ("port", "a whole number from 0 to 65535"),
        ("token_ttl", "a duration like 500ms, 30s, 1m30s or 4h, from 1s to 1h"),
        ("idle_timeout", "a duration like 500ms, 30s, 1m30s or 4h, at least 1s"),
        ("base_url", 'http(s)://host[:port][/path] without user, query and fragment, or ""'),
    ],
)
def test_what_is_allowed_is_told_in_words(name: str, words: str) -> None:
    key = next(key for key in keys_of(StreamingSettings) if key.name == name)
    assert allowed(key.kind, key.bounds) == words
