"""How much a request may hold: bytes, entries of each list and map, characters of each string and map.

Rules:
- What passes here is bounded in every part, so that whatever is linear in a part is short. Who knows a narrower bound
  of a field (a path, a host name, a sysctl) checks it where the field is used.
- A limit is what the kernel or Kubernetes can take anyway, with room; nobody's honest request comes near the others.
- An ordinary request is told by its size alone to be within all limits.

`execve(2)`: MAX_ARG_STRLEN for one word or variable, three quarters of 8 MiB for all of them.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cri_shim.errors import InvalidArgumentError

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

MAX_REQUEST_BYTES: Final = 8 << 20
"""The most that the kernel takes as words and variables of a process, 6 MiB, and 2 MiB for everything else."""
MAX_ENTRIES: Final = 10_000
"""Of a list or map that isn't named below."""
MAX_CHARS: Final = 4096
"""Of a string that isn't named below: as many as a path can have."""
MAX_MAP_CHARS: Final = 524_288
"""Of all keys and values of one map. Lists repeat labels and annotations, and a list has to fit into one answer.
Kubernetes allows 256 KiB of annotations; kubelet adds some."""

_MAX_WORD_BYTES: Final = 131_071
_MAX_ENTRIES_OF: Final = {
    # 5,000 services are 35,000 variables.
    **dict.fromkeys(("envs", "command", "args", "cmd"), 65_536),
    "supplemental_groups": 65_536,  # the kernel's NGROUPS_MAX
    "port": 65_536,
}
_MAX_CHARS_OF: Final = {
    **dict.fromkeys(("command", "args", "cmd", "key", "value"), _MAX_WORD_BYTES),
    # The kernel's bound for a list of CPUs grows with their number.
    **dict.fromkeys(("cpuset_cpus", "cpuset_mems"), 65_536),
    **dict.fromkeys(("password", "auth", "identity_token", "registry_token"), 65_536),
}


def check_size(raw: bytes) -> None:
    """Raises InvalidArgumentError for a request of more bytes than can be of use, before it is decoded."""
    if len(raw) > MAX_REQUEST_BYTES:
        raise InvalidArgumentError(
            f"the request has {len(raw)} bytes: at most {MAX_REQUEST_BYTES} can be of use to any container"
        )


def check_parts(message: Message, size: int) -> None:
    """`size` is the message's on the wire. Raises InvalidArgumentError naming the field, what it has and may have."""
    # Neither a string nor a list in it can be larger than the whole, and no limit is smaller than this.
    if size > MAX_CHARS:
        _check(message, "")


class _Field(NamedTuple):
    """What is to be looked at in a field of a message."""

    name: str
    max_entries: int
    max_chars: int
    is_text: bool
    is_message: bool


@cache
def _fields(descriptor: Descriptor) -> dict[str, tuple[_Field, bool]]:
    """By name, those that can be too large, and whether each is a map."""
    found = {}
    for field in descriptor.fields:
        entry = field.message_type
        is_map = entry is not None and entry.GetOptions().map_entry
        value = entry.fields_by_name["value"] if entry is not None and is_map else field
        is_text = value.type in (value.TYPE_STRING, value.TYPE_BYTES)
        if is_text or field.is_repeated or field.message_type:
            known = _Field(
                field.name,
                _MAX_ENTRIES_OF.get(field.name, MAX_ENTRIES),
                _MAX_CHARS_OF.get(field.name, MAX_CHARS),
                is_text,
                bool(value.message_type),
            )
            found[field.name] = known, is_map
    return found


def _check(message: Message, prefix: str) -> None:
    # Not by `ByteSize` of each message on the way: that encodes megabytes once more at each level.
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
        raise InvalidArgumentError(f"{path}: {len(entries)} entries: at most {field.max_entries}")
    if is_map:
        if field.is_text:
            total = sum(map(len, entries)) + sum(map(len, entries.values()))
            if total > MAX_MAP_CHARS:
                raise InvalidArgumentError(
                    f"{path}: {total} characters in all keys and values: at most {MAX_MAP_CHARS}"
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
    raise InvalidArgumentError(f"{path}: {len(value)} {unit}: at most {most}")
