"""The document on the error stream, by version."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cri_shim.streaming.wire.outcome import (
    MAX_MESSAGE_CHARACTERS,
    Exited,
    Failed,
    Outcome,
    build_error_document,
)
from cri_shim.streaming.wire.upgrade import V1, V1_BASE64, V2, V3, V4, V4_BASE64, V5

STATUS: dict[str, tuple[Outcome, dict[str, Any]]] = {
    "success": (Exited(0), {"metadata": {}, "status": "Success"}),
    "exit code": (
        Exited(3),
        {
            "metadata": {},
            "status": "Failure",
            "message": "command terminated with non-zero exit code: exit status 3",
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": "3"}]},
        },
    ),
    "internal": (
        Failed("no such file\n"),
        {
            "metadata": {},
            "status": "Failure",
            "message": "Internal error occurred: no such file\n",
            "reason": "InternalError",
            "details": {"causes": [{"message": "no such file\n"}]},
            "code": 500,
        },
    ),
}


@pytest.mark.parametrize("protocol", [V4, V4_BASE64, V5])
@pytest.mark.parametrize("case", STATUS)
def test_from_v4_on_it_is_a_status(protocol: str, case: str) -> None:
    outcome, status = STATUS[case]
    assert json.loads(build_error_document(protocol, outcome)) == status


@pytest.mark.parametrize("protocol", [V1, V1_BASE64, V2, V3])
def test_before_v4_it_is_a_text_or_nothing(protocol: str) -> None:
    assert build_error_document(protocol, Exited(0)) == b""
    assert build_error_document(protocol, Exited(137)).endswith(b"exit status 137")
    assert build_error_document(protocol, Failed("ö")).decode() == "Internal error occurred: ö"


def test_a_long_message_is_cut() -> None:
    for protocol in (V1, V4):
        document = build_error_document(protocol, Failed("x" * 10**6))
        assert len(document) < 2 * MAX_MESSAGE_CHARACTERS + 500


def test_an_exit_code_fits_what_clients_parse() -> None:
    assert b'"message":"255"' in build_error_document(V4, Exited(-1))
