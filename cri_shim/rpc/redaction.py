"""Renders a gRPC message for a log line, without its secrets.

Rules:
- At any depth the fields that the API marks `debug_redact` are hidden, and the unmarked secrets that `_UNMARKED` lists.
  v1alpha2 has no marks, so its messages use those of their v1 namesakes.
- Unknown fields (of a newer client) are left out, since they may be secret.
- The text is one line of ASCII, apart from "…". Strings are quoted and escaped: no request can forge a log line.
- The cost is bounded by the length of the text, not by the size of the message: pieces are generated until the bound is
  reached. Only the keys of a map are all read, to sort them; `request_limits` bounds their number.
- The message is neither changed nor copied, so no second copy of a secret exists.
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
"""Replaces a hidden value, so that a reader can tell a value that was set from an absent one."""

MAX_VALUE_CHARS: Final = 200
"""The longest string shown whole: one long annotation must not use up the line."""

_ELLIPSIS: Final = "…"

_UNMARKED: Final = {
    # Secrets reach containers as environment variables.
    "runtime.v1.KeyValue": {"value"},
    # The URL contains a one-time token: a reader of the log could open the stream with it.
    "runtime.v1.ExecResponse": {"url"},
    "runtime.v1.AttachResponse": {"url"},
    "runtime.v1.PortForwardResponse": {"url"},
    # The verbose documents contain OCI specs and image configurations, with their environment variables.
    "runtime.v1.PodSandboxStatusResponse": {"info"},
    "runtime.v1.ContainerStatusResponse": {"info"},
    "runtime.v1.ImageStatusResponse": {"info"},
    "runtime.v1.StatusResponse": {"info"},
}


def redacted(message: Message, *, max_chars: int = 1024) -> str:
    """Render `message` without its secrets, as one line of at most `max_chars` characters.

    Unset fields are left out. Of bytes only the number is shown, of a string longer than `MAX_VALUE_CHARS` its
    beginning and the number of further characters. A truncated text ends with "…".
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
    """Names of the secret fields of this message type, not of the messages in it."""
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
    """The field of a map's values, or None if `field` is not a map."""
    entry = field.message_type
    return entry.fields_by_name["value"] if entry and entry.GetOptions().map_entry else None


def _map_pieces(value_field: FieldDescriptor, entries: Mapping[str, object]) -> Iterator[str]:
    separator = "{"
    for key in sorted(entries):  # protobuf maps have no order, and log lines should be comparable
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
