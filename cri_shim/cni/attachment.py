"""One attachment: a container's interface on one network, the unit of every CNI operation. Pure.

Rules:
- An attachment's three names go into environment variables and into a file name of the result cache. They are checked
  when the attachment is created, so that nobody has to check them again.
- CNI_ARGS has no quoting: plugins split it at `;` and then at `=`. So a key or value with a separator is refused, never
  escaped. A pod annotation must not be able to add an argument of its own.

CNI spec 1.1 §2 "Parameters", and libcni's limits for interface names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cri_shim.errors import InvalidArgumentError
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_NETWORK_NAME = 128
"""Characters. Leaves room for a container ID and an interface name in one file name."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_FORBIDDEN_IN_ARGS = re.compile(r"[;=\x00-\x1f\x7f]")
_MAX_IFNAME = 15  # IFNAMSIZ without the terminating NUL


def is_network_name(text: str) -> bool:
    """Whether `text` is a valid network name: alphanumeric first, then also `_`, `.` and `-`."""
    return len(text) <= MAX_NETWORK_NAME and _NAME.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Attachment:
    """The interface `ifname` of a container on `network`, with the arguments for its plugins.

    Raises InvalidArgumentError for a name that the CNI spec or the kernel would refuse.
    """

    container_id: str
    netns: str
    """Path of the network namespace. It may be gone by the time of a DEL."""
    ifname: str
    network: str
    args: Mapping[str, str] = field(default_factory=dict)
    """CNI_ARGS, for every plugin of the chain."""
    capability_args: Mapping[str, object] = field(default_factory=dict)
    """By capability. A plugin gets those that its configuration declares."""

    def __post_init__(self) -> None:
        if len(self.container_id) > 64 or not _NAME.fullmatch(self.container_id):
            raise InvalidArgumentError(
                f"CNI container ID {quoted(self.container_id)}: only letters, digits, '_', '.', '-', at most 64"
            )
        if not is_network_name(self.network):
            raise InvalidArgumentError(
                f"CNI network name {quoted(self.network)}: only letters, digits, '_', '.', '-', "
                f"at most {MAX_NETWORK_NAME}"
            )
        if not _is_interface_name(self.ifname):
            raise InvalidArgumentError(
                f"interface name {quoted(self.ifname)}: 1 to {_MAX_IFNAME} bytes "
                "without '/', ':' or white space"
            )
        for key, value in self.args.items():
            if not key or _FORBIDDEN_IN_ARGS.search(key) or _FORBIDDEN_IN_ARGS.search(value):
                raise InvalidArgumentError(
                    f"CNI argument {quoted(key)}={quoted(value)}: the key must not be empty, and neither may "
                    "contain ';', '=' or a control character"
                )

    def __str__(self) -> str:
        return f"{self.ifname} of {self.container_id[:13]} on network {self.network}"

    @property
    def cni_args(self) -> str:
        """The value of CNI_ARGS."""
        return ";".join(f"{key}={value}" for key, value in self.args.items())


def _is_interface_name(text: str) -> bool:
    return (
        text not in ("", ".", "..")
        and len(text.encode(errors="replace")) <= _MAX_IFNAME
        and text.isprintable()
        and not any(character in "/:" or character.isspace() for character in text)
    )
