"""Maps an exception to a gRPC status: the only place that chooses a gRPC code.

Rules:
- The error's class decides the code. It is looked up along the MRO, so that a subclass needs no row of its own.
- A text is bounded, redacted and converted, in that order and in one expression. So redaction costs no more than the
  bound, and no unredacted text reaches a client. (A peer redacted after the conversion, and registry tokens appeared in
  the events of pods.)
- Exhaustion of the host (descriptors, memory, threads) may surface at any system call, and is always
  RESOURCE_EXHAUSTED.
- Any other exception that is not a `CriShimError` is a bug. Its text and traceback go to the log; the client gets only
  the request ID to find them there.
- `asyncio.CancelledError` is no `Exception` and never comes here.
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
"""Codes that become RESOURCE_EXHAUSTED if exhaustion of the host is the cause, e.g. of a child that failed to start."""

MAX_TEXT_BYTES: Final = 2400
"""grpc-message is percent-encoded, up to three bytes for each, and many clients accept 8 KiB of headers."""

MAX_TRACEBACK_CHARS: Final = 65536
"""The longest traceback in the log. A cut takes its end, the exception's text, which may be long; the frames stay."""

_CUT: Final = " […] "


class Answer(NamedTuple):
    """The status of a failed call."""

    code: grpc.StatusCode
    text: str


def answer_to(error: Exception, request_id: str) -> Answer:
    """The status for `error`. An error that is not ours is logged with its traceback and answered without details."""
    if isinstance(error, errors.CriShimError):
        code = _code(type(error))
        if code in _THE_HOSTS and _stands_for_a_lack(error):
            code = grpc.StatusCode.RESOURCE_EXHAUSTED
        return Answer(code, _text_for_client(str(error)))
    if errors.is_lack(error):
        text = f"the node ran out of a resource: {error or repr(error)}: {errors.remedy(error)}"
        return Answer(grpc.StatusCode.RESOURCE_EXHAUSTED, _text_for_client(text))
    log.error(
        "unexpected error: please report it",
        exception=redacted_text(
            bounded_text("".join(traceback.format_exception(error)), MAX_TRACEBACK_CHARS)
        ),
    )
    return Answer(
        grpc.StatusCode.INTERNAL,
        f"unexpected error in cri-shim; see its log for request_id={request_id}",
    )


def _stands_for_a_lack(error: BaseException) -> bool:
    cause = error.__cause__
    return cause is not None and (errors.is_lack(cause) or _stands_for_a_lack(cause))


def _code(kind: type) -> grpc.StatusCode:
    return next(CODES[cls] for cls in kind.__mro__ if cls in CODES)


def _text_for_client(text: str) -> str:
    return _bounded(redacted_text(bounded_text(text)))


def _bounded(text: str) -> str:
    """Bound a text by cutting its middle: the step is at its beginning, a command's last output at its end."""
    # A file name that is not UTF-8 contains surrogates in Python, which grpc cannot encode.
    raw = text.encode("utf-8", "backslashreplace")
    if len(raw) <= MAX_TEXT_BYTES:
        return raw.decode()
    half = (MAX_TEXT_BYTES - len(_CUT.encode())) // 2
    return raw[:half].decode(errors="ignore") + _CUT + raw[-half:].decode(errors="ignore")
