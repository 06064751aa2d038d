"""How a shim is started, asked, and cleaned up after: the verbs of its command line, and its answers to them.

Rules:
- The answer to `start` has three forms: a protobuf message, JSON, or the address alone. They are tried in this order.
- An address must be a socket on this node, in the file system or in the abstract namespace.
- The shim's log goes to /dev/null. A FIFO that nobody reads would block it, and end it by SIGPIPE once its reader has
  died; a file would grow. What it has to say of a call is in its answer.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
from google.protobuf.message import DecodeError

from cri_shim._pb.shim.v2 import task_pb2
from cri_shim.errors import UNREADABLE_DOCUMENT
from cri_shim.oci.runtime import RuntimeVersion

if TYPE_CHECKING:
    from pathlib import Path

NAMESPACE: Final = "cri-shim"
"""What keeps our containers apart from those of a containerd on the same node."""
PUBLISH_BINARY: Final = "/bin/true"
"""Who would be told of events: everything they say is asked for."""
_MAX_ADDRESS_CHARS = 512
_VERSION_LINE = re.compile(r"^\s*Version:\s*(\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Bootstrapped:
    """Where a shim answers, and in which version of the task API."""

    socket: str
    """A path; one that begins with a NUL byte is in the abstract namespace."""
    version: int

    @property
    def service(self) -> str:
        """The full name of the task service."""
        return f"containerd.task.v{self.version}.Task"


class _JsonAnswer(msgspec.Struct, frozen=True):
    address: str
    version: int = 2
    protocol: str = "ttrpc"


def start_words(object_id: str) -> list[str]:
    """The arguments of `start`."""
    return [*_common(object_id), "start"]


def delete_words(object_id: str, bundle_dir: Path) -> list[str]:
    """The arguments of `delete`, which cleans up after a shim that is dead."""
    return [*_common(object_id), "-bundle", str(bundle_dir), "delete"]


def _common(object_id: str) -> list[str]:
    return [
        *("-namespace", NAMESPACE, "-address", ""),
        *("-publish-binary", PUBLISH_BINARY, "-id", object_id),
    ]


def silence_log(bundle_dir: Path) -> None:
    """Make what the shim opens as its log."""
    with contextlib.suppress(FileExistsError):
        (bundle_dir / "log").symlink_to("/dev/null")


def parse_start_answer(stdout: bytes) -> Bootstrapped:
    """What `start` has written. Raises ValueError. Pure."""
    address, version, protocol = _fields(stdout)
    if protocol != "ttrpc":
        raise ValueError(f"it speaks {protocol[:32]!r}, not ttrpc")
    if version not in (2, 3):
        raise ValueError(f"it has version {version} of the task API, not 2 or 3")
    if len(address) > _MAX_ADDRESS_CHARS:
        raise ValueError("its address is too long")
    socket = address.removeprefix("unix://")
    if socket.startswith("@"):
        socket = f"\0{socket[1:]}"
    if not socket.startswith(("/", "\0")):
        raise ValueError(f"{address[:64]!r} is no address of a unix socket")
    return Bootstrapped(socket, version)


def _fields(stdout: bytes) -> tuple[str, int, str]:
    text = stdout.strip()
    if text.startswith(b"{"):
        try:
            answer = msgspec.json.decode(text, type=_JsonAnswer)
        except UNREADABLE_DOCUMENT as error:
            raise ValueError(f"its answer to start can't be read: {error}") from error
        return answer.address, answer.version, answer.protocol
    try:
        result = task_pb2.BootstrapResult.FromString(stdout)
    except DecodeError:
        pass
    else:
        if result.address and result.protocol:
            return result.address, result.version, result.protocol
    try:
        return text.decode(), 2, "ttrpc"
    except UnicodeDecodeError:
        raise ValueError("its answer to start is neither protobuf nor JSON nor text") from None


def parse_version(program: str, stdout: str) -> RuntimeVersion:
    """What `-v` has written; a shim that tells no version has an empty one. Pure."""
    found = _VERSION_LINE.search(stdout)
    return RuntimeVersion(program, found[1] if found else "", "")
