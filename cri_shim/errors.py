"""Every error that leaves a mechanism, by what the caller can do about it.

    CriShimError                    INTERNAL             a bug, or the host failed
    ├─ InvalidArgumentError         INVALID_ARGUMENT     malformed request: do not retry
    │  ├─ BadImageReferenceError
    │  ├─ BadArchiveError
    │  │  └─ DamagedBlobError                            changed on its way: another try may help
    │  ├─ UnknownRuntimeHandlerError
    │  └─ ConfigError                                    the daemon's own configuration
    ├─ NotFoundError                NOT_FOUND
    ├─ AlreadyExistsError           ALREADY_EXISTS       the name is held by another object
    ├─ WrongStateError              FAILED_PRECONDITION  e.g. start of a running container
    ├─ ProgramError                 FAILED_PRECONDITION  the image has no such program, or it can't be run
    ├─ UnsupportedError             UNIMPLEMENTED
    ├─ PermissionRefusedError       PERMISSION_DENIED
    │  └─ RegistryAuthError                              a registry wants other credentials, or any
    ├─ ResourceExhaustedError       RESOURCE_EXHAUSTED   disk full, too many of something
    │  └─ TooManyFilesError                              a container has more open than it may
    ├─ UnavailableError             UNAVAILABLE          try again later
    │  ├─ NotReadyError                                  still recovering, no network configuration
    │  ├─ RegistryUnavailableError                       no registry answered as it should
    │  └─ CniPluginError                                 a plugin's own words
    ├─ DeadlineError                DEADLINE_EXCEEDED
    ├─ CommandError                 INTERNAL             a child process failed
    │  ├─ RuntimeCommandError                            the OCI runtime
    │  └─ MonitorError                                   conmon
    └─ CorruptStateError            DATA_LOSS            a record or blob failed its check

The first level says what the caller can do, the second who complained. A message names the object, the
step and the cause, and what a person can do; it never carries a secret, and of what others chose only so much as
`quoting.quoted` leaves. `rpc/status.py` maps the classes to gRPC codes. `OSError` may pass inside `host`; the mechanism
that called turns it into one of these.
"""

from __future__ import annotations

import errno
import shlex
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec

from cri_shim.quoting import bounded_text, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

UNREADABLE_DOCUMENT: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not the document they should be."""


class CriShimError(Exception):
    """The base: reached as itself only through a bug or a failing host."""

    def __str__(self) -> str:
        """The text, bounded: it goes to clients, to the log and into records."""
        return bounded_text(super().__str__())


class InvalidArgumentError(CriShimError):
    """The request is malformed; sending it again can't help."""


class BadImageReferenceError(InvalidArgumentError):
    """An image reference that the distribution grammar refuses."""


class BadArchiveError(InvalidArgumentError):
    """An image archive, manifest or layer that is damaged, hostile or of a kind not supported."""


class DamagedBlobError(BadArchiveError):
    """A blob that does not have the digest it was asked for by: it was changed on its way, or where it is kept."""


class UnknownRuntimeHandlerError(InvalidArgumentError):
    """A RuntimeClass handler that the configuration does not name."""


class ConfigError(InvalidArgumentError):
    """The daemon's configuration: file, path in it, value and what is allowed."""


class NotFoundError(CriShimError):
    """No object of this kind has this key."""

    def __init__(self, kind: str, key: str, detail: str = "") -> None:
        super().__init__(f"{kind} {quoted(key)} not found" + (f": {detail}" if detail else ""))
        self.kind = kind
        self.key = key


class AlreadyExistsError(CriShimError):
    """The name is taken; the message names the holder."""


class WrongStateError(CriShimError):
    """The object is not in the state that the call needs."""


class ProgramError(CriShimError):
    """A program in a container can't be run: it is missing, not executable, or its working directory can't be entered.

    `words` are the runtime's, `exit_code` is what a shell would make of it: 127 for what is not there, else 126.
    """

    def __init__(self, what: str, words: str, exit_code: int) -> None:
        super().__init__(f"{what}: {words}")
        self.words = words
        self.exit_code = exit_code


class UnsupportedError(CriShimError):
    """Part of the API that this server does not serve."""


class PermissionRefusedError(CriShimError):
    """The caller, or this process, may not do that."""


class RegistryAuthError(PermissionRefusedError):
    """A registry, or its token server, refused the credentials, or asks for some where the pull brought none."""


class ResourceExhaustedError(CriShimError):
    """Out of disk, memory, descriptors or a configured bound."""


class TooManyFilesError(ResourceExhaustedError):
    """A process has more files open than its container's limit leaves it."""


class UnavailableError(CriShimError):
    """Not now; a later retry may succeed."""


class NotReadyError(UnavailableError):
    """The server, or the pod network, is not ready yet."""


class RegistryUnavailableError(UnavailableError):
    """No registry could be reached, or none answered as it should.

    The text begins with the name by which kubelet recognises this kind of failure (cri-api, pkg/errors).
    """

    def __init__(self, text: str) -> None:
        super().__init__(f"RegistryUnavailable: {text}")


class CniPluginError(UnavailableError):
    """A CNI plugin failed, hung or answered garbage: its name, its code and its own words.

    `code` is the CNI spec's error code, or 0 where the plugin gave none.
    """

    def __init__(self, plugin: str, command: str, message: str, *, code: int = 0) -> None:
        super().__init__(
            f"CNI plugin {plugin}: {command}: {message}" + (f" (code {code})" if code else "")
        )
        self.plugin = plugin
        self.command = command
        self.code = code

    def name_object(self, what: str) -> None:
        """Put the object first in the text: a plugin knows only container IDs and interfaces."""
        self.args = (f"{what}: {self}",)


class DeadlineError(CriShimError):
    """A deadline passed; the message says which and what was still going on."""


class CommandError(CriShimError):
    """A child process failed: what was run, how it ended, the tail of what it said."""

    def __init__(self, doing: str, argv: Sequence[str], ending: str, stderr_tail: str) -> None:
        said = stderr_tail.strip() or "it said nothing"
        super().__init__(f"{doing}: {argv[0]} {ending}: {said}")
        self.argv = list(argv)
        self.stderr_tail = stderr_tail

    @property
    def command_line(self) -> str:
        """The command as one can paste it into a shell."""
        return shlex.join(self.argv)


class RuntimeCommandError(CommandError):
    """The OCI runtime refused or failed."""


class MonitorError(CommandError):
    """conmon failed before it could report, or died."""


class CorruptStateError(CriShimError):
    """A record, layer or blob is not what it should be."""


_OUT_OF_SOMETHING = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.ENOMEM,
        errno.EMFILE,
        errno.ENFILE,
        errno.EAGAIN,
        errno.EROFS,
    }
)


def is_lack(error: BaseException) -> bool:
    """Whether the host is out of something: room, memory, descriptors, processes, a disk that can be written to."""
    match error:
        case OSError():
            return error.errno in _OUT_OF_SOMETHING
        case RuntimeError():
            # What Python makes of the kernel's refusal.
            return str(error) == "can't start new thread"
        case _:
            return isinstance(error, MemoryError)


def remedy(error: BaseException) -> str:
    """What a person can do about a lack."""
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return "make the file system writable and try again"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room on the node: free some space and try again"
    return "make room on the node and try again"


@contextmanager
def host_step(doing: str) -> Iterator[None]:
    """Turn an OSError of the block into an error of ours that says what was being done.

    Raises ResourceExhaustedError where the host is out of disk, memory or descriptors (`is_lack`), else CriShimError.
    """
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        text = f"{doing}: {error.strerror or error}{where}"
        if is_lack(error):
            raise ResourceExhaustedError(f"{text}: {remedy(error)}") from error
        raise CriShimError(text) from error


def forget_frames(error: BaseException) -> None:
    """Drop the tracebacks of an error that was told, and of those behind it.

    A traceback holds every frame that the error passed, and these all that they had at hand, such as a request of
    megabytes. Where one of them has the error at hand, too, only the garbage collector would end the cycle.
    """
    known: set[int] = set()
    to_do: list[BaseException | None] = [error]
    while to_do:
        each = to_do.pop()
        if each is None or id(each) in known:
            continue
        known.add(id(each))
        each.__traceback__ = None
        to_do += (each.__cause__, each.__context__)
        if isinstance(each, BaseExceptionGroup):
            to_do += each.exceptions
