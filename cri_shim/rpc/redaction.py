"""What of a gRPC message may stand in a log line.

Rules:
- Hidden, at any depth, is every field that the API marks `debug_redact`, and what is as secret without a mark:
  `_UNMARKED` names it. v1alpha2 carries no marks; its messages go by those of their v1 namesakes.
- Fields that our descriptors don't know (a newer client's) are left out: nobody can tell what they hold.
- One line of ASCII apart from "…": strings are quoted and escaped, so that no request can forge a log line.
- A text costs about as much as it is long, not as the message is big: it is written piece by piece and given up
  where the bound is reached. Only a map's keys are all looked at, to sort them; `request_limits` bounds their number.
- Pure: the message is neither changed nor copied, so no second copy of a secret is made.
"""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Final

from cri_shim._pb.cri.v1 import api_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from google.protobuf.descriptor import Descriptor, FieldDescriptor
    from google.protobuf.message import Message

HIDDEN: Final = "[redacted]"
"""Stands where a hidden value was, so that "was given" and "was absent" stay distinguishable."""

MAX_VALUE_CHARS: Final = 200
"""Longest string shown whole: one long annotation must not crowd out the rest."""

_ELLIPSIS: Final = "…"

_UNMARKED: Final = {
    # Secrets reach containers as environment variables.
    "runtime.v1.KeyValue": {"value"},
    # Each URL is a ticket: who reads it can use it.
    "runtime.v1.ExecResponse": {"url"},
    "runtime.v1.AttachResponse": {"url"},
    "runtime.v1.PortForwardResponse": {"url"},
    # The verbose documents hold whole OCI specs and image configurations, their environment included.
    "runtime.v1.PodSandboxStatusResponse": {"info"},
    "runtime.v1.ContainerStatusResponse": {"info"},
    "runtime.v1.ImageStatusResponse": {"info"},
    "runtime.v1.StatusResponse": {"info"},
}


def redacted(message: Message, *, max_chars: int = 1024) -> str:
    """`message` without its secrets, as one line of at most `max_chars` characters.

    Fields that are not set don't appear, bytes are shown by their number only, and strings longer than
    `MAX_VALUE_CHARS` by their beginning and how much was left out. A text that ends in "…" was cut.
    """
    pieces: list[str] = []
    length = 0
    for piece in _message_pieces(message, message.DESCRIPTOR.name):
        pieces.append(piece)
        length += len(piece)
        if length > max_chars:
            return "".join(pieces)[: max_chars - len(_ELLIPSIS)] + _ELLIPSIS
    return "".join(pieces)


@cache
def _hidden_fields(descriptor: Descriptor) -> frozenset[str]:
    """Names of the fields of this very type that no log may show."""
    if descriptor.file.package == "runtime.v1alpha2":
        descriptor = api_pb2.DESCRIPTOR.message_types_by_name.get(descriptor.name, descriptor)
    marked = {field.name for field in descriptor.fields if field.GetOptions().debug_redact}
    return frozenset(marked | _UNMARKED.get(descriptor.full_name, set()))


def _message_pieces(message: Message, name: str = "") -> Iterator[str]:
    hidden = _hidden_fields(message.DESCRIPTOR)
    yield name + "{"
    separator = ""
    for field, value in message.ListFields():
        yield f"{separator}{field.name}: "
        separator = ", "
        if field.name in hidden:
            yield HIDDEN
        elif map_value := _map_value(field):
            yield from _map_pieces(map_value, value)
        elif field.is_repeated:
            yield from _list_pieces(field, value)
        else:
            yield from _value_pieces(field, value)
    yield "}"


def _map_value(field: FieldDescriptor) -> FieldDescriptor | None:
    """What a map's values are; None if the field is no map."""
    entry = field.message_type
    return entry.fields_by_name["value"] if entry and entry.GetOptions().map_entry else None


def _map_pieces(value_field: FieldDescriptor, entries: Mapping[str, object]) -> Iterator[str]:
    separator = "{"
    for key in sorted(entries):  # a map has no order of its own
        yield f"{separator}{_quoted(key)}: "
        yield from _value_pieces(value_field, entries[key])
        separator = ", "
    yield "}"


def _list_pieces(field: FieldDescriptor, values: Sequence[object]) -> Iterator[str]:
    separator = "["
    for value in values:
        yield separator
        yield from _value_pieces(field, value)
        separator = ", "
    yield "]"


def _value_pieces(field: FieldDescriptor, value: object) -> Iterator[str]:
    if field.message_type:
        yield from _message_pieces(value)  # type: ignore[arg-type]  # the descriptor says it is one
    elif field.enum_type:
        named = field.enum_type.values_by_number.get(value)  # type: ignore[call-overload]  # an int
        yield named.name if named else str(value)
    elif isinstance(value, bytes):
        yield f"<{len(value)} bytes>"
    elif isinstance(value, str):
        yield _quoted(value)
    else:
        yield str(value).lower()  # numbers, true, false


def _quoted(value: str) -> str:
    beyond = len(value) - MAX_VALUE_CHARS
    return json.dumps(value[:MAX_VALUE_CHARS]) + (f"(+{beyond})" if beyond > 0 else "")
