"""Requests of which one field is as large as one likes: for every field of every message of CRI."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cri_shim._pb.cri.v1 import api_pb2 as api

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import Descriptor, FieldDescriptor
    from google.protobuf.message import Message

WORDS = ("a", "://", "/a", "../", "a-", "password=", "\n", "\u202e")
"""What strings are made of: each is what some check, pattern or path walk takes long over, if any does."""

MAX_MAP_ENTRIES = 12_000


class Place(NamedTuple):
    """A field that can be large, as the fields that lead to it from a request; one entry of each list on the way."""

    fields: tuple[FieldDescriptor, ...]

    @property
    def field(self) -> FieldDescriptor:
        """The last one."""
        return self.fields[-1]

    @property
    def request(self) -> Descriptor:
        """The message that it is a field of, however deep."""
        found = self.fields[0].containing_type
        assert found is not None
        return found

    def __str__(self) -> str:
        return ".".join((self.request.name, *(field.name for field in self.fields)))


def request_names() -> list[str]:
    """Of every message that a client of CRI sends."""
    return sorted(name for name in api.DESCRIPTOR.message_types_by_name if name.endswith("Request"))


def places(descriptor: Descriptor, before: tuple[FieldDescriptor, ...] = ()) -> Iterator[Place]:
    """Every string, list and map below a message."""
    for field in descriptor.fields:
        path = (*before, field)
        message = field.message_type
        is_map = message is not None and message.GetOptions().map_entry
        if field.is_repeated or field.type in (field.TYPE_STRING, field.TYPE_BYTES):
            yield Place(path)
        if message is not None and not is_map:
            yield from places(message, path)
        elif field.is_repeated and field.type in (field.TYPE_STRING, field.TYPE_BYTES):
            yield Place((*path, field))  # a single long entry


def fill(request: Message, place: Place, word: str, size: int) -> None:
    """Make the field about `size` bytes large, out of `word`s: one string of them, or as many entries."""
    message = request
    for field in place.fields[:-1]:
        if field is place.field:
            getattr(message, field.name).append(_text(field, word, size))
            return
        value = getattr(message, field.name)
        if field.is_repeated:
            message = value[0] if value else value.add()
        else:
            value.SetInParent()
            message = value
    field = place.field
    if not field.is_repeated:
        setattr(message, field.name, _text(field, word, size))
        return
    message.ClearField(field.name)
    entry, values = field.message_type, getattr(message, field.name)
    if entry is not None and entry.GetOptions().map_entry:
        if entry.fields_by_name["value"].type == field.TYPE_STRING:
            values.update(
                {
                    f"{word}{number}": word
                    for number in range(min(size // (len(word) + 10), MAX_MAP_ENTRIES))
                }
            )
        return
    # Many entries are made of the bytes of one, which is quick.
    one = type(message)()
    several = getattr(one, field.name)
    if entry is not None:
        several.add()
    else:
        several.append(
            _text(field, word, 1) if field.type in (field.TYPE_STRING, field.TYPE_BYTES) else 1
        )
    raw = one.SerializeToString()
    message.MergeFromString(raw * (size // len(raw)))


def _text(field: FieldDescriptor, word: str, size: int) -> str | bytes:
    text = word * max(1, size // len(word.encode()))
    return text.encode() if field.type == field.TYPE_BYTES else text
