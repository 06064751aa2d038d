from __future__ import annotations

import pytest

from cri_shim.cli.log_lines import Written, parse_log
from cri_shim.errors import CorruptStateError

TIME = b"2026-11-22T09:28:45.993099123+00:00"


def test_lines_are_read_in_the_files_order() -> None:
    data = TIME + b" stdout F one\n" + TIME + b" stderr F  two\n" + TIME + b" stdout F \n"
    assert parse_log(data) == [
        Written("stdout", "one"),
        Written("stderr", " two"),
        Written("stdout", ""),
    ]


def test_parts_of_a_line_are_joined_per_stream() -> None:
    data = b"".join(
        TIME + entry + b"\n" for entry in (b" stdout P on", b" stderr F two", b" stdout F e")
    )
    assert parse_log(data) == [Written("stderr", "two"), Written("stdout", "one")]


def test_what_is_not_complete_yet_is_left_out() -> None:
    assert parse_log(TIME + b" stdout F one\n" + TIME + b" stdou") == [Written("stdout", "one")]
    assert parse_log(TIME + b" stdout P begun\n") == []
    assert parse_log(b"") == []


@pytest.mark.parametrize(
    "time", [b"2026-11-22T09:28:45.9Z", b"2026-11-22T09:28:45.993099123-07:00"]
)
def test_every_form_of_the_time_is_taken(time: bytes) -> None:
    assert parse_log(time + b" stdout F:more x\n") == [Written("stdout", "x")]


@pytest.mark.parametrize(
    "line",
    [
        b"hello",
        b"2026-11-22 stdout F x",
        TIME + b" stdin F x",
        TIME + b" stdout X x",
        TIME + b" stdout F",
        b"",
    ],
)
def test_a_line_of_another_form_is_named(line: bytes) -> None:
    with pytest.raises(CorruptStateError, match=r"^line 2 of the log does not have"):
        parse_log(TIME + b" stdout F fine\n" + line + b"\n")
