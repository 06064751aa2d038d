from __future__ import annotations

import asyncio
import errno
import time
from typing import TYPE_CHECKING

import grpc
import pytest
from structlog.testing import capture_logs

import cri_shim.rpc.client  # noqa: F401 - defines subclasses that must resolve too
from cri_shim import errors
from cri_shim.errors import CniPluginError, CriShimError
from cri_shim.rpc.status import MAX_TEXT_BYTES, MAX_TRACEBACK_CHARS, answer_to

if TYPE_CHECKING:
    from collections.abc import Iterator

EXPECTED = {
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


def every_subclass(cls: type[CriShimError]) -> Iterator[type[CriShimError]]:
    for sub in cls.__subclasses__():
        if not sub.__module__.startswith(
            "cri_shim.cli"
        ):  # what a command says of itself never meets gRPC
            yield sub
        yield from every_subclass(sub)


def instance(cls: type[CriShimError]) -> CriShimError:
    """One whose text is known, whatever its constructor wants."""
    error = cls.__new__(cls)
    CriShimError.__init__(error, "sandbox 12ab: step: cause")
    return error


@pytest.mark.parametrize("cls", sorted(set(every_subclass(CriShimError)), key=str))
def test_every_error_has_the_code_of_its_first_level_and_keeps_its_text(
    cls: type[CriShimError],
) -> None:
    code, text = answer_to(instance(cls), "r1")
    first_level = cls.__mro__[cls.__mro__.index(CriShimError) - 1]
    assert code is EXPECTED[first_level]
    assert text == "sandbox 12ab: step: cause"


def test_the_base_class_is_internal_with_its_text() -> None:
    assert answer_to(CriShimError("disk"), "r1") == (grpc.StatusCode.INTERNAL, "disk")


def test_a_bug_is_answered_with_the_request_id_only_and_logged_with_its_traceback() -> None:
    try:
        raise KeyError("private detail")
    except KeyError as error:
        with capture_logs() as logs:
            code, text = answer_to(error, "r17")
    assert code is grpc.StatusCode.INTERNAL
    assert "r17" in text
    assert "private" not in text
    assert logs[0]["log_level"] == "error"
    assert "private detail" in logs[0]["exception"]
    assert "test_status.py" in logs[0]["exception"]


LACKS = [
    OSError(errno.EMFILE, "Too many open files", "/proc/1"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    OSError(errno.EROFS, "Read-only file system"),
    MemoryError(),
    RuntimeError("can't start new thread"),
]


@pytest.mark.parametrize("lack", LACKS, ids=repr)
def test_a_lack_of_the_host_is_no_bug_wherever_it_shows(lack: Exception) -> None:
    with capture_logs() as logs:
        code, text = answer_to(lack, "r1")
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "try again" in text
    assert logs == []
    try:
        raise CniPluginError("bridge", "ADD", "can't be run") from lack
    except CniPluginError as error:
        code, text = answer_to(error, "r1")
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert text == "CNI plugin bridge: ADD: can't be run"


def test_a_cause_of_another_kind_leaves_the_code_alone() -> None:
    error = CriShimError("disk")
    error.__cause__ = PermissionError(errno.EACCES, "Permission denied")
    assert answer_to(error, "r1").code is grpc.StatusCode.INTERNAL
    error = errors.NotFoundError("image", "x")
    error.__cause__ = OSError(errno.EMFILE, "Too many open files")
    assert answer_to(error, "r1").code is grpc.StatusCode.NOT_FOUND


def test_a_logged_traceback_is_redacted_too() -> None:
    with capture_logs() as logs:
        answer_to(ValueError("Authorization: Bearer abc.def"), "r1")
    assert "abc.def" not in logs[0]["exception"]


def test_cancellation_is_not_an_exception_that_gets_a_status() -> None:
    assert not issubclass(asyncio.CancelledError, Exception)


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    text = answer_to(errors.UnavailableError("START" + "é" * 5000 + "END"), "r1").text
    assert len(text.encode()) <= MAX_TEXT_BYTES
    assert text.startswith("START")
    assert text.endswith("END")


def test_a_text_reaches_the_client_without_its_secrets() -> None:
    text = answer_to(
        errors.UnavailableError("GET https://user:hunter2@registry.local/v2/"), "r1"
    ).text
    assert text == "GET https://***@registry.local/v2/"


@pytest.mark.parametrize("piece", ["://", "password=", "Bearer ", "x", "\n", "\udcff", "é"])
def test_any_text_costs_and_shows_a_bounded_part_of_it(piece: str) -> None:
    hostile = piece * (8_000_000 // len(piece))
    for error in (
        errors.InvalidArgumentError(hostile),
        OSError(errno.ENOSPC, hostile),
        KeyError(hostile),
    ):
        with capture_logs() as logs:
            spent = time.process_time()
            text = answer_to(error, "r1").text
            spent = time.process_time() - spent
        assert len(text.encode()) <= MAX_TEXT_BYTES
        assert all(len(entry["exception"]) <= 2 * MAX_TRACEBACK_CHARS for entry in logs)
        assert spent < 2  # quadratic work on this takes hours


def test_a_text_with_bytes_that_are_no_utf8_can_be_sent() -> None:
    text = answer_to(errors.UnavailableError("file \udcff"), "r1").text
    assert text.encode() == b"file \\udcff"
