from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.quoting import MAX_QUOTED_CHARS, bounded_text, quoted, redacted_text


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("401 for Authorization: Bearer eyJhbGciOi.x-y_z", "eyJhbGciOi"),
        ("sent Basic dXNlcjpwYXNz to host", "dXNlcjpwYXNz"),
        ("GET https://user:hunter2@registry.local/v2/", "hunter2"),
        ("GET https://cdn.local/blob?X-Sig=deadbeef&e=1 failed", "deadbeef"),
        ('config {"auths": {"h": {"auth": "c2VjcmV0"}}}', "c2VjcmV0"),
        ("login password=hunter2, retry", "hunter2"),
        ("'identity_token': 'tok-1'", "tok-1"),
        ('{"access_token":"tok-2","expires_in":3}', "tok-2"),
        ("registry_token: tok-3", "tok-3"),
        ("PASSWORD = hunter2", "hunter2"),
        ('"password": "hunter2 with no end', "hunter2"),
        ("at a://b://user:hunter2@host", "hunter2"),
    ],
)
def test_secrets_are_taken_out_of_texts(text: str, secret: str) -> None:
    redacted = redacted_text(text)
    assert secret not in redacted
    assert "***" in redacted


@pytest.mark.parametrize(
    "text",
    [
        "sandbox 12ab: CNI plugin bridge: ADD: no IP addresses left (code 11)",
        "GET https://registry.local:5000/v2/a/b/manifests/latest: 404",
        "bad reference 'user@sha256:12'",
        'runc ended with status 1: exec: "sh": not found',
    ],
)
def test_texts_without_secrets_stay_as_they_are(text: str) -> None:
    assert redacted_text(text) == text


@pytest.mark.parametrize("value", ["", "a b", "it's", 'say "no"', "é", b"\xff", 5, -1, True, None])
def test_a_short_value_stands_as_python_writes_it(value: object) -> None:
    assert quoted(value) == repr(value)


def test_a_long_value_is_cut_and_says_how_much_is_missing() -> None:
    assert (
        quoted("x" * 5000) == f"'{'x' * MAX_QUOTED_CHARS}' (+{5000 - MAX_QUOTED_CHARS} characters)"
    )
    assert quoted(b"x" * 12, 10) == "b'xxxxxxxxxx' (+2 bytes)"
    assert quoted(10**30, 10) == "1000000000 (+21 characters)"
    assert bounded_text("abcdef", 4) == "abcd (+2 characters)"
    assert bounded_text("abcd", 4) == "abcd"


@pytest.mark.parametrize(
    "control", ["\n", "\r", "\x1b[2J", "\x00", "\x7f", "\x9b", "\u2028", "\u202e", "\udcff"]
)
def test_no_value_moves_a_terminal_or_begins_a_line(control: str) -> None:
    shown = quoted(f"a{control}b")
    assert shown.isprintable()
    assert shown.isascii()


SECRET = "hunter2" * 100
WITH_SECRETS = [
    f"GET https://user:{SECRET}@registry.local/v2/",
    f"a://b://user:{SECRET}@registry.local/",
    f"GET https://cdn.local/blob?X-Sig={SECRET}&e=1 failed",
    f"401 for Authorization: Bearer {SECRET} again",
    f"sent Basic {SECRET} to host",
    f'config {{"auths": {{"h": {{"auth": "{SECRET}"}}}}}}',
    f"'identity_token': '{SECRET}'",
    f"login password={SECRET}, retry",
    f'PASSWORD = "{SECRET}"',
]


@pytest.mark.parametrize("text", WITH_SECRETS)
def test_no_cut_shows_the_beginning_of_a_secret_whose_end_is_what_it_is_known_by(text: str) -> None:
    begins = text.index(SECRET)
    for limit in (*range(begins, begins + 30), len(text) - 3):
        for shown in (quoted(text, limit), bounded_text(text, limit)):
            assert "hunt" not in redacted_text(shown)


@given(st.text(max_size=300))
def test_any_value_is_shown_on_one_line_of_bounded_length(text: str) -> None:
    assert quoted(text).isprintable()
    assert len(quoted(text)) <= 10 * MAX_QUOTED_CHARS + 30
