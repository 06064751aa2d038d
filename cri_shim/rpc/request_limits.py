"""Bounds the size of a request and of its parts: entries of each list and map, characters of each string and map.

Rules:
- Every part of an accepted request is bounded, so that code that is linear in a part is fast. A narrower bound of a
  field (a path, a host name, a sysctl) is checked where the field is used.
- Each limit is at least what the kernel or Kubernetes accepts, so that no honest request is refused.
- A request of at most `MAX_CHARS` bytes cannot exceed a limit, and is not searched.

execve(2) bounds one argument or variable to MAX_ARG_STRLEN, and all of them to three quarters of 8 MiB.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cri_shim.errors import InvalidArgumentError

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

MAX_REQUEST_BYTES: Final = 8 << 20
"""6 MiB, the most that execve(2) takes as arguments and variables, and 2 MiB for everything else."""
MAX_ENTRIES: Final = 10_000
"""The most entries of a list or map that has no limit of its own below."""
MAX_CHARS: Final = 4096
"""The longest string that has no limit of its own below: PATH_MAX."""
MAX_MAP_CHARS: Final = 524_288
"""Characters of all keys and values of one map. Kubernetes allows 256 KiB of annotations, and kubelet adds some.
The bound matters since List responses repeat labels and annotations, and must fit into one message."""

_MAX_WORD_BYTES: Final = 131_071
MAX_ENTRIES_OF: Final = {
    # Kubelet sets seven variables for each service of the namespace: 5,000 services make 35,000 variables.
    **dict.fromkeys(("envs", "command", "args", "cmd"), 65_536),
    "supplemental_groups": 65_536,  # the kernel's NGROUPS_MAX
    "port": 65_536,
}
MAX_CHARS_OF: Final = {
    **dict.fromkeys(("command", "args", "cmd", "key", "value"), _MAX_WORD_BYTES),
    # The kernel's bound for a list of CPUs grows with their number.
    **dict.fromkeys(("cpuset_cpus", "cpuset_mems"), 65_536),
    **dict.fromkeys(("password", "auth", "identity_token", "registry_token"), 65_536),
}


def check_size(raw: bytes) -> None:
    """Check an encoded request. Raises InvalidArgumentError if it has more than `MAX_REQUEST_BYTES`."""
    if len(raw) > MAX_REQUEST_BYTES:
        raise InvalidArgumentError(
            f"the request has {len(raw)} bytes; the limit is {MAX_REQUEST_BYTES}: send less"
        )


def check_parts(message: Message, size: int) -> None:
    """Check the parts of a decoded request, of `size` bytes on the wire.

    Raises InvalidArgumentError with the field's path, its size and its limit.
    """
    # No string or list is longer than the whole message, and no limit is below MAX_CHARS: small requests need no walk.
    if size > MAX_CHARS:
        _check(message, "")


class _Field(NamedTuple):
    """The limits of one field of a message."""

    name: str
    max_entries: int
    max_chars: int
    is_text: bool
    is_message: bool


@cache
def _fields(descriptor: Descriptor) -> dict[str, tuple[_Field, bool]]:
    """The fields of a message type that can be too large, by name, each with whether it is a map."""
    found = {}
    for field in descriptor.fields:
        entry = field.message_type
        is_map = entry is not None and entry.GetOptions().map_entry
        value = entry.fields_by_name["value"] if entry is not None and is_map else field
        is_text = value.type in (value.TYPE_STRING, value.TYPE_BYTES)
        if is_text or field.is_repeated or field.message_type:
            known = _Field(
                field.name,
                MAX_ENTRIES_OF.get(field.name, MAX_ENTRIES),
                MAX_CHARS_OF.get(field.name, MAX_CHARS),
                is_text,
                bool(value.message_type),
            )
            found[field.name] = known, is_map
    return found


def _check(message: Message, prefix: str) -> None:
    # The walk does not prune by `ByteSize` of each submessage: upb encodes the message to compute it, and would encode
    # megabytes again at every level.
    fields = _fields(message.DESCRIPTOR)
    for descriptor, value in message.ListFields():
        if descriptor.name not in fields:
            continue
        field, is_map = fields[descriptor.name]
        path = prefix + field.name
        if descriptor.is_repeated or is_map:
            _check_entries(field, path, value, is_map=is_map)
        elif field.is_message:
            _check(value, f"{path}.")
        elif len(value) > field.max_chars:
            _refuse(path, value, field.max_chars)


def _check_entries(field: _Field, path: str, entries: Any, *, is_map: bool) -> None:  # noqa: ANN401 - a protobuf container
    if len(entries) > field.max_entries:
        raise InvalidArgumentError(
            f"{path} has {len(entries)} entries; the limit is {field.max_entries}"
        )
    if is_map:
        if field.is_text:
            total = sum(map(len, entries)) + sum(map(len, entries.values()))
            if total > MAX_MAP_CHARS:
                raise InvalidArgumentError(
                    f"{path} has {total} characters in all keys and values; the limit is {MAX_MAP_CHARS}"
                )
    elif field.is_text:
        for index, value in enumerate(entries):
            if len(value) > field.max_chars:
                _refuse(f"{path}[{index}]", value, field.max_chars)
    elif field.is_message:
        for index, entry in enumerate(entries):
            if entry.ByteSize() > MAX_CHARS:
                _check(entry, f"{path}[{index}].")


def _refuse(path: str, value: str | bytes, most: int) -> None:
    unit = "characters" if isinstance(value, str) else "bytes"
    raise InvalidArgumentError(f"{path} has {len(value)} {unit}; the limit is {most}")
