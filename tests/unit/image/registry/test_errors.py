from __future__ import annotations

import json

import pytest

from cri_shim import errors
from cri_shim.image.registry.errors import Fault, ServerFailure, registry_words, verdict


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.MISSING, errors.NotFoundError),
        (Fault.REFUSED, errors.RegistryAuthError),
        (Fault.DAMAGED, errors.BadArchiveError),
        (Fault.BROKEN, errors.RegistryUnavailableError),
        (Fault.PASSING, errors.RegistryUnavailableError),
    ],
)
def test_the_last_complaint_decides_and_all_are_told(fault: Fault, error: type[Exception]) -> None:
    failures = [
        ServerFailure("m.example", Fault.PASSING, "503"),
        ServerFailure("r.example", fault, "its own words"),
    ]
    made = verdict("r.example/a:1: fetching", "image", "r.example/a:1", failures)
    assert type(made) is error
    assert "m.example: 503; r.example: its own words" in str(made)
    assert "r.example/a:1" in str(made)


@pytest.mark.parametrize(
    ("mirrors", "error"),
    [
        ([Fault.MISSING], errors.NotFoundError),
        ([Fault.REFUSED, Fault.MISSING], errors.RegistryAuthError),
        ([Fault.MISSING, Fault.DAMAGED], errors.BadArchiveError),
        ([Fault.PASSING, Fault.MISSING, Fault.BROKEN], errors.NotFoundError),
        ([Fault.PASSING], errors.RegistryUnavailableError),
        ([], errors.RegistryUnavailableError),
    ],
)
def test_where_the_registry_is_silent_its_mirrors_most_telling_complaint_decides(
    mirrors: list[Fault], error: type[Exception]
) -> None:
    said = [
        ServerFailure(f"m{number}.example", fault, "no") for number, fault in enumerate(mirrors)
    ]
    silent = ServerFailure("r.example", Fault.PASSING, "no connection", answered=False)
    made = verdict("fetching", "image", "r.example/a:1", [*said, silent])
    assert type(made) is error
    assert all(str(each) in str(made) for each in (*said, silent))


def test_a_registry_that_answered_decides_whatever_its_mirrors_said() -> None:
    said = [
        ServerFailure("m.example", Fault.MISSING, "404"),
        ServerFailure("r", Fault.PASSING, "503"),
    ]
    assert type(verdict("f", "image", "a", said)) is errors.RegistryUnavailableError


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"errors": [{"code": "DENIED", "message": "no access"}]}, "no access"),
        ({"errors": [{"code": "DENIED"}, {"message": "b"}]}, "DENIED; b"),
        ({"errors": [{"code": "X", "message": "a\r\n\x1b[31mb", "detail": {}}]}, "a   [31mb"),
        ({"details": "incorrect username"}, "incorrect username"),
        ({"errors": [{"message": "x" * 1000}]}, "x" * 300),
        ({"errors": 5}, ""),
        ([], ""),
    ],
)
def test_a_registrys_words_are_cut_and_cleaned(body: object, words: str) -> None:
    assert registry_words(json.dumps(body).encode()) == words


def test_a_complaint_is_cut_and_cleaned_whoever_worded_it() -> None:
    text = str(ServerFailure("r.example", Fault.BROKEN, "400 \x1b[2J\nreason " + "x" * 5000))
    assert text.startswith("r.example: 400  [2J reason xxx")
    assert text.isprintable()
    assert len(text) < 800


def test_a_page_that_is_no_json_says_nothing() -> None:
    assert registry_words(b'{"errors":[{"message":"\xff\xfe"}]}') == ""
    assert registry_words(b"<html>") == ""
