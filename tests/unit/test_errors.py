"""What errors say, and where they belong: the first level tells the caller what to do."""

from __future__ import annotations

import errno
import inspect

import pytest

from cri_shim import errors
from cri_shim.errors import (
    CniPluginError,
    CommandError,
    CriShimError,
    InvalidArgumentError,
    MonitorError,
    NotFoundError,
    ResourceExhaustedError,
    RuntimeCommandError,
    UnavailableError,
    forget_frames,
    host_step,
)


def all_errors() -> list[type[CriShimError]]:
    return [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, CriShimError)
    ]


@pytest.mark.parametrize("kind", all_errors())
def test_every_error_is_in_the_picture_of_the_tree_and_explains_itself(
    kind: type[CriShimError],
) -> None:
    assert errors.__doc__
    line = next(line for line in errors.__doc__.splitlines() if kind.__name__ in line.split())
    depth = len(line) - len(line.lstrip(" │├└─"))
    distance = len(kind.__mro__) - len(CriShimError.__mro__)
    assert depth == 4 + 3 * distance
    assert kind.__doc__


def test_a_missing_object_is_named_with_its_kind() -> None:
    error = NotFoundError("image", "busybox")
    assert str(error) == "image 'busybox' not found"
    assert (error.kind, error.key) == ("image", "busybox")
    assert str(NotFoundError("image", "b", "pull it")) == "image 'b' not found: pull it"


def test_a_plugin_speaks_for_itself() -> None:
    error = CniPluginError("bridge", "ADD", "no addresses", code=11)
    assert str(error) == "CNI plugin bridge: ADD: no addresses (code 11)"
    assert (error.plugin, error.command, error.code) == ("bridge", "ADD", 11)
    assert "code" not in str(CniPluginError("bridge", "ADD", "died"))
    assert isinstance(error, UnavailableError)


@pytest.mark.parametrize("kind", [CommandError, RuntimeCommandError, MonitorError])
def test_a_failed_command_says_what_was_done_how_it_ended_and_what_it_said(
    kind: type[CommandError],
) -> None:
    error = kind("starting x", ["/usr/bin/runc", "start", "a b"], "exited with status 1", " no \n")
    assert str(error) == "starting x: /usr/bin/runc exited with status 1: no"
    assert error.stderr_tail == " no \n"
    assert error.command_line == "/usr/bin/runc start 'a b'"


def test_a_silent_command_is_said_to_be_silent() -> None:
    assert str(CommandError("x", ["cmd"], "was killed by SIGKILL", "  ")).endswith(
        "no error output"
    )


def test_a_command_line_is_not_shared_with_its_caller() -> None:
    argv = ["runc", "start"]
    error = CommandError("x", argv, "ended", "")
    argv.append("changed")
    assert error.argv == ["runc", "start"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM, errno.EMFILE, errno.ENFILE])
def test_a_host_out_of_something_says_what_was_done_and_what_to_do(number: int) -> None:
    with pytest.raises(ResourceExhaustedError, match=r"writing it: .* \(/file\): make room"):
        with host_step("writing it"):
            raise OSError(number, "full", "/file")


def test_a_read_only_disk_has_a_remedy_of_its_own() -> None:
    with pytest.raises(ResourceExhaustedError, match="writable"):
        with host_step("writing it"):
            raise OSError(errno.EROFS, "Read-only file system", "/file")


def test_any_other_failure_of_the_host_keeps_its_cause() -> None:
    cause = PermissionError(errno.EACCES, "Permission denied", "/file")
    with pytest.raises(CriShimError, match=r"writing it: Permission denied \(/file\)") as caught:
        with host_step("writing it"):
            raise cause
    assert caught.value.__cause__ is cause
    assert not isinstance(caught.value, ResourceExhaustedError)


def test_a_failure_without_words_or_file_is_told_all_the_same() -> None:
    with pytest.raises(CriShimError, match=r"^doing: odd$"):
        with host_step("doing"):
            raise OSError("odd")


def test_a_step_leaves_success_and_our_own_errors_alone() -> None:
    with host_step("doing"):
        pass
    with pytest.raises(InvalidArgumentError, match=r"^bad$"):
        with host_step("doing"):
            raise InvalidArgumentError("bad")


def raised(error: Exception) -> Exception:
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


def test_an_error_that_was_told_holds_no_frame_any_more_nor_does_what_is_behind_it() -> None:
    inside = raised(OSError("inside"))
    group = raised(ExceptionGroup("several", [inside]))
    error = raised(CriShimError("outside"))
    error.__context__ = group
    error.__cause__ = error  # nothing keeps anybody from it
    assert all(each.__traceback__ for each in (inside, group, error))
    forget_frames(error)
    assert not any(each.__traceback__ for each in (inside, group, error))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_what_to_do(number: int) -> None:
    with (
        pytest.raises(ResourceExhaustedError, match=r"^pulling a: .*free some space"),
        host_step("pulling a"),
    ):
        raise OSError(number, "full", "/x")


def test_another_failure_of_the_host_is_its_own() -> None:
    with pytest.raises(CriShimError) as caught, host_step("pulling a"):
        raise OSError(errno.EIO, "bad disk")
    assert type(caught.value) is CriShimError
