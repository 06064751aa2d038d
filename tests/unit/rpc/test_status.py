from __future__ import annotations

import asyncio
import errno
import time
from typing import TYPE_CHECKING

import grpc
import pytest
from structlog.testing import capture_logs

from cri_shim import errors
from cri_shim.errors import CniPluginError, CriShimError
from cri_shim.rpc.client import RemoteNotFoundError
from cri_shim.rpc.status import MAX_TEXT_BYTES, MAX_TRACEBACK_CHARS, answer_to
from cri_shim.single_flight import SupersededError

if TYPE_CHECKING:
    from collections.abc import Iterator

ARGV = ["/usr/sbin/runc", "start", "12ab"]

MEANINGS: dict[str, tuple[grpc.StatusCode, list[CriShimError]]] = {
    # The words are those of grpc/status.h; the errors, one of every class, are what they say in CRI's calls.
    "the arguments are problematic regardless of the state of the system": (
        grpc.StatusCode.INVALID_ARGUMENT,
        [
            errors.InvalidArgumentError("config.metadata.name: is empty"),
            errors.BadImageReferenceError("image: 'A:b:c' is no reference"),
            errors.BadArchiveError("archive: no index.json"),
            errors.DamagedBlobError("blob sha256:12: the bytes have another digest"),
            errors.UnknownRuntimeHandlerError("runtime handler 'kata' is not configured"),
            errors.ConfigError("config.yaml: log.level: not 'loud'"),
        ],
    ),
    "a requested entity was not found": (
        # kubelet takes it for the success of a Stop or Remove.
        grpc.StatusCode.NOT_FOUND,
        [
            errors.NotFoundError("container", "12ab"),
            RemoteNotFoundError("container 12ab not found"),
        ],
    ),
    "the entity that a client attempted to create already exists": (
        grpc.StatusCode.ALREADY_EXISTS,
        [
            errors.AlreadyExistsError("the name web is taken by container 12ab"),
        ],
    ),
    "not in the state required; the client should not retry until that has been fixed": (
        grpc.StatusCode.FAILED_PRECONDITION,
        [
            errors.WrongStateError("container 12ab is running"),
            errors.ProgramError("start container 12ab", "exec: 'no-such': not found", 127),
        ],
    ),
    "the operation is not implemented or not supported in this service": (
        grpc.StatusCode.UNIMPLEMENTED,
        [
            errors.UnsupportedError("Checkpoint"),
        ],
    ),
    "the caller does not have permission": (
        # UNAUTHENTICATED is about the caller of this service, and it is not the caller whom a registry refuses.
        grpc.StatusCode.PERMISSION_DENIED,
        [
            errors.PermissionRefusedError("/root/x: Permission denied"),
            errors.RegistryAuthError("registry.local: 401"),
        ],
    ),
    "some resource has been exhausted, perhaps a quota, or the file system is out of space": (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        [
            errors.ResourceExhaustedError("layer sha256:12: No space left on device"),
            errors.TooManyFilesError("container 12ab has more files open than its limit"),
        ],
    ),
    "currently unavailable, most likely a transient condition; a retry may correct it": (
        grpc.StatusCode.UNAVAILABLE,
        [
            errors.UnavailableError("the pod is being stopped"),
            errors.NotReadyError("still recovering"),
            errors.RegistryUnavailableError("registry.local: connection refused"),
            errors.CniPluginError("bridge", "ADD", "no address is left"),
            SupersededError("another request has this name now"),
        ],
    ),
    "the deadline expired before the operation could complete": (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        [
            errors.DeadlineError("conmon did not answer within 60 s"),
        ],
    ),
    "some invariant expected by the underlying system has been broken": (
        grpc.StatusCode.INTERNAL,
        [
            errors.CriShimError("mount: Operation not permitted"),
            errors.CommandError("start container 12ab", ARGV, "exited with status 1", "oh"),
            errors.RuntimeCommandError("start container 12ab", ARGV, "was killed by SIGSEGV", ""),
            errors.MonitorError("create container 12ab", ["conmon"], "exited with status 1", ""),
        ],
    ),
    "unrecoverable data loss or corruption": (
        grpc.StatusCode.DATA_LOSS,
        [
            errors.CorruptStateError("record.json of sandbox 12ab is no JSON"),
        ],
    ),
}
"""What a client may conclude from a code, and the errors of which that is true."""


@pytest.mark.parametrize("meaning", MEANINGS)
def test_every_error_has_the_code_that_means_it_and_keeps_its_text(meaning: str) -> None:
    code, meant = MEANINGS[meaning]
    for error in meant:
        assert answer_to(error, "r1") == (code, str(error)), repr(error)


def every_subclass(cls: type[CriShimError]) -> Iterator[type[CriShimError]]:
    yield cls
    for sub in cls.__subclasses__():
        yield from every_subclass(sub)


def test_no_error_that_a_call_may_raise_was_left_out_of_these() -> None:
    shown = {type(error) for _, meant in MEANINGS.values() for error in meant}
    missing = [
        cls
        for cls in every_subclass(CriShimError)
        # What a command says of itself never meets gRPC; what a test defines is its own.
        if cls.__module__.startswith("cri_shim.") and not cls.__module__.startswith("cri_shim.cli")
        if cls not in shown
    ]
    assert missing == []


def test_an_error_class_of_later_has_the_code_of_what_it_is_one_of() -> None:
    class StaleLeaseError(errors.CniPluginError):
        """Nobody has thought of it yet."""

    answer = answer_to(StaleLeaseError("dhcp", "ADD", "its lease has expired"), "r1")
    assert answer.code is grpc.StatusCode.UNAVAILABLE


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
