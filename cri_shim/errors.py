"""The errors of cri-shim, by what the caller can do about them.

    CriShimError                    INTERNAL             a bug, or the host failed
    ├─ InvalidArgumentError         INVALID_ARGUMENT     malformed request: do not retry
    │  ├─ BadImageReferenceError
    │  ├─ BadArchiveError
    │  │  └─ DamagedBlobError                            changed in transit: a retry may help
    │  ├─ UnknownRuntimeHandlerError
    │  └─ ConfigError                                    the daemon's own configuration
    ├─ NotFoundError                NOT_FOUND
    ├─ AlreadyExistsError           ALREADY_EXISTS       the name is held by another object
    ├─ WrongStateError              FAILED_PRECONDITION  e.g. start of a running container
    ├─ ProgramError                 FAILED_PRECONDITION  the image lacks the program, or it cannot be run
    ├─ UnsupportedError             UNIMPLEMENTED
    ├─ PermissionRefusedError       PERMISSION_DENIED
    │  └─ RegistryAuthError                              a registry needs credentials, or other ones
    ├─ ResourceExhaustedError       RESOURCE_EXHAUSTED   disk full, too many of something
    │  └─ TooManyFilesError                              a container has more open files than its limit
    ├─ UnavailableError             UNAVAILABLE          try again later
    │  ├─ NotReadyError                                  still recovering, no network configuration
    │  ├─ RegistryUnavailableError                       no registry gave a valid answer
    │  └─ CniPluginError                                 a CNI plugin failed
    ├─ DeadlineError                DEADLINE_EXCEEDED
    ├─ CommandError                 INTERNAL             a child process failed
    │  ├─ RuntimeCommandError                            the OCI runtime
    │  └─ MonitorError                                   conmon
    └─ CorruptStateError            DATA_LOSS            a record or blob failed its check

Rules:
- The first level of the hierarchy says what the caller can do, the second where the error came from.
- A message names the object, the step, the cause and the remedy. It never has a secret, and it includes untrusted
  values only through `quoting.quoted`.
- `rpc/status.py` maps the classes to gRPC codes.
- `OSError` may leave `host`; its caller converts it into one of these.
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
"""The exceptions of msgspec's decoders for malformed bytes."""


class CriShimError(Exception):
    """The base class. An instance of it itself means a bug, or a failure of the host."""

    def __str__(self) -> str:
        """The text, bounded, since it goes to clients, to the log and into records."""
        return bounded_text(super().__str__())


class InvalidArgumentError(CriShimError):
    """The request is malformed; a retry cannot succeed."""


class BadImageReferenceError(InvalidArgumentError):
    """An image reference that does not match the grammar of distribution's references."""


class BadArchiveError(InvalidArgumentError):
    """An image archive, manifest or layer is damaged, hostile or of an unsupported type."""


class DamagedBlobError(BadArchiveError):
    """A blob does not match its digest: it changed in transit or in storage."""


class UnknownRuntimeHandlerError(InvalidArgumentError):
    """A RuntimeClass handler that is not configured."""


class ConfigError(InvalidArgumentError):
    """A mistake in the daemon's configuration. The text has file, key, value and what is allowed."""


class NotFoundError(CriShimError):
    """There is no object of this kind with this key."""

    def __init__(self, kind: str, key: str, detail: str = "") -> None:
        super().__init__(f"{kind} {quoted(key)} not found" + (f": {detail}" if detail else ""))
        self.kind = kind
        self.key = key


class AlreadyExistsError(CriShimError):
    """The name is taken; the message names the holder."""


class WrongStateError(CriShimError):
    """The object is not in the state that the call needs."""


class ProgramError(CriShimError):
    """A program in a container cannot be run: it is missing, not executable, or its working directory is inaccessible.

    `words` is the runtime's message. `exit_code` is that of a shell: 127 for a missing program, else 126.
    """

    def __init__(self, what: str, words: str, exit_code: int) -> None:
        super().__init__(f"{what}: {words}")
        self.words = words
        self.exit_code = exit_code


class UnsupportedError(CriShimError):
    """Part of the API that this server does not serve."""


class PermissionRefusedError(CriShimError):
    """The caller or this process lacks a permission."""


class RegistryAuthError(PermissionRefusedError):
    """A registry or its token server refused the credentials, or requires some and the pull has none."""


class ResourceExhaustedError(CriShimError):
    """Out of disk, memory, descriptors or a configured bound."""


class TooManyFilesError(ResourceExhaustedError):
    """A process has more open files than its container's limit leaves."""


class UnavailableError(CriShimError):
    """Not now; a later retry may succeed."""


class NotReadyError(UnavailableError):
    """The server, or the pod network, is not ready yet."""


class RegistryUnavailableError(UnavailableError):
    """No registry could be reached, or none gave a valid answer.

    The text begins with the name by which kubelet recognises this failure (cri-api, pkg/errors).
    """

    def __init__(self, text: str) -> None:
        super().__init__(f"RegistryUnavailable: {text}")


class CniPluginError(UnavailableError):
    """A CNI plugin failed, timed out or printed invalid output. The text has its name, message and error code.

    `code` is the error code of the CNI specification (section 5), or 0 if the plugin gave none.
    """

    def __init__(self, plugin: str, command: str, message: str, *, code: int = 0) -> None:
        super().__init__(
            f"CNI plugin {plugin}: {command}: {message}" + (f" (code {code})" if code else "")
        )
        self.plugin = plugin
        self.command = command
        self.code = code

    def name_object(self, what: str) -> None:
        """Put the pod in front of the text, since a plugin knows only container IDs and interfaces."""
        self.args = (f"{what}: {self}",)


class DeadlineError(CriShimError):
    """A deadline passed. The text says which, and what was still under way."""


class CommandError(CriShimError):
    """A child process failed. The text has the program, how it ended, and the tail of its stderr."""

    def __init__(self, doing: str, argv: Sequence[str], ending: str, stderr_tail: str) -> None:
        said = stderr_tail.strip() or "no error output"
        super().__init__(f"{doing}: {argv[0]} {ending}: {said}")
        self.argv = list(argv)
        self.stderr_tail = stderr_tail

    @property
    def command_line(self) -> str:
        """The command line, quoted for a shell."""
        return shlex.join(self.argv)


class RuntimeCommandError(CommandError):
    """A command of the OCI runtime failed."""


class MonitorError(CommandError):
    """conmon failed before it reported a result, or died."""


class CorruptStateError(CriShimError):
    """A record, layer or blob failed its check."""


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
    """Whether the host ran out of disk space, memory, descriptors or processes, or its disk became read-only."""
    match error:
        case OSError():
            return error.errno in _OUT_OF_SOMETHING
        case RuntimeError():
            # Python's only sign of EAGAIN from pthread_create(3).
            return str(error) == "can't start new thread"
        case _:
            return isinstance(error, MemoryError)


def remedy(error: BaseException) -> str:
    """What an operator can do about an error for which `is_lack` is true."""
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return "make the file system writable and try again"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room on the node: free some space and try again"
    return "make room on the node and try again"


@contextmanager
def host_step(doing: str) -> Iterator[None]:
    """Convert an OSError of the block into a CriShimError, with `doing` in front.

    Raises ResourceExhaustedError if the host ran out of a resource (`is_lack`), else CriShimError.
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
    """Drop the tracebacks of an error that was reported, and of its causes and contexts.

    A traceback refers to the frames that the error passed, and they to their locals, such as a request of megabytes. If
    a frame also refers to the error, only the garbage collector would free this cycle.
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
