"""From an exception to what a client is told: the only place where a gRPC code is chosen.

Rules:
- The class decides the code, looked up along its MRO, so that a new error class needs no row of its own.
- Bound, then redact, then convert, in one expression: no text costs more than its bound, and a text that was not
  redacted can't reach a client. (A peer redacted after converting, and registry tokens reached the events of pods.)
- What the host lacks (descriptors, memory, threads) may show at any system call: wherever it does, it is
  RESOURCE_EXHAUSTED.
- What else is not a `CriShimError` is a bug: its text goes to the log, with its traceback, and the client gets only the
  request id to find it there.
- `asyncio.CancelledError` is no `Exception`, so it never comes here.
"""

from __future__ import annotations

import traceback
from typing import Final, NamedTuple

import grpc
import structlog

from cri_shim import errors
from cri_shim.quoting import bounded_text, redacted_text

log = structlog.get_logger()

CODES: Final[dict[type, grpc.StatusCode]] = {
    errors.CriShimError: grpc.StatusCode.INTERNAL,
    errors.InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    errors.WrongStateError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ProgramError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.UnsupportedError: grpc.StatusCode.UNIMPLEMENTED,
    errors.PermissionRefusedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.ResourceExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.CommandError: grpc.StatusCode.INTERNAL,
    errors.CorruptStateError: grpc.StatusCode.DATA_LOSS,
}

_THE_HOSTS: Final = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE})
"""Codes behind which a lack of the host may stand: a child that could not be started."""

MAX_TEXT_BYTES: Final = 2400
"""A status travels percent-encoded, up to three bytes for one, in headers of which many clients take 8 KiB."""

MAX_TRACEBACK_CHARS: Final = 65536
"""Of a bug's traceback in the log; the frames come first, and the exception's own text, which may be long, last."""

_CUT: Final = " […] "


class Answer(NamedTuple):
    """What a client is told about a failed call."""

    code: grpc.StatusCode
    text: str


def answer_to(error: Exception, request_id: str) -> Answer:
    """The status for `error`; one that is not ours is logged with its traceback and answered without detail."""
    if isinstance(error, errors.CriShimError):
        code = _code(type(error))
        if code in _THE_HOSTS and _stands_for_a_lack(error):
            code = grpc.StatusCode.RESOURCE_EXHAUSTED
        return Answer(code, _text_for_client(str(error)))
    if errors.is_lack(error):
        text = f"the node is out of something: {error or repr(error)}: {errors.remedy(error)}"
        return Answer(grpc.StatusCode.RESOURCE_EXHAUSTED, _text_for_client(text))
    log.error(
        "unexpected error: please report it",
        exception=redacted_text(
            bounded_text("".join(traceback.format_exception(error)), MAX_TRACEBACK_CHARS)
        ),
    )
    return Answer(
        grpc.StatusCode.INTERNAL,
        f"unexpected error in cri-shim; its log tells more under request_id={request_id}",
    )


def _stands_for_a_lack(error: BaseException) -> bool:
    cause = error.__cause__
    return cause is not None and (errors.is_lack(cause) or _stands_for_a_lack(cause))


def _code(kind: type) -> grpc.StatusCode:
    return next(CODES[cls] for cls in kind.__mro__ if cls in CODES)


def _text_for_client(text: str) -> str:
    return _bounded(redacted_text(bounded_text(text)))


def _bounded(text: str) -> str:
    """Cut from the middle what is too long: the step stands in front, a command's last words at the end."""
    # Names of files may hold bytes that are no UTF-8 (surrogates here), which gRPC couldn't encode.
    raw = text.encode("utf-8", "backslashreplace")
    if len(raw) <= MAX_TEXT_BYTES:
        return raw.decode()
    half = (MAX_TEXT_BYTES - len(_CUT.encode())) // 2
    return raw[:half].decode(errors="ignore") + _CUT + raw[-half:].decode(errors="ignore")
