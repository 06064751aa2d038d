"""The outcome of an exec or attach, and the document on the error stream that reports it.

Rules: from v4 on, the document is a Kubernetes `Status` in JSON. Before, it is a text, and empty for success. Clients
accept exit codes from 0 to 255.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeAlias

from cri_shim.streaming.wire.upgrade import V4, V4_BASE64, V5

MAX_MESSAGE_CHARACTERS = 8 << 10

_WITH_STATUS = (V4, V4_BASE64, V5)


@dataclass(frozen=True, slots=True)
class Exited:
    """The process has exited; a signal gives 128 + its number. For an attach, 0 means that the session is over."""

    exit_code: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The process could not be started, or is no longer followed."""

    message: str


Outcome: TypeAlias = Exited | Failed


def build_error_document(protocol: str, outcome: Outcome) -> bytes:
    """The content of the error stream for this protocol and outcome."""
    if isinstance(outcome, Failed):
        text = f"Internal error occurred: {outcome.message[:MAX_MESSAGE_CHARACTERS]}"
        causes = [{"message": outcome.message[:MAX_MESSAGE_CHARACTERS]}]
        return _document(protocol, text, "InternalError", causes, code=500)
    if not outcome.exit_code:
        return _json({"status": "Success"}) if protocol in _WITH_STATUS else b""
    text = f"command terminated with non-zero exit code: exit status {outcome.exit_code}"
    causes = [{"reason": "ExitCode", "message": str(outcome.exit_code & 0xFF)}]
    return _document(protocol, text, "NonZeroExitCode", causes)


def _document(
    protocol: str, message: str, reason: str, causes: list[dict[str, str]], **more: int
) -> bytes:
    if protocol not in _WITH_STATUS:
        return message.encode("utf-8", "replace")
    failure: dict[str, Any] = {"status": "Failure", "message": message, "reason": reason}
    return _json({**failure, "details": {"causes": causes}, **more})


def _json(fields: dict[str, Any]) -> bytes:
    return json.dumps({"metadata": {}, **fields}, separators=(",", ":")).encode("ascii")
