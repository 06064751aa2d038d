"""Arbitrary protobuf messages for property tests, and their content as plain Python values."""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

M = TypeVar("M", bound=Message)

# U+D800 to U+DFFF are no characters, and protobuf refuses them.
_TEXT = st.text(st.characters(codec="utf-8"), max_size=8)

_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=8),
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_STRING: _TEXT,
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
}


def messages(message_class: type[M]) -> st.SearchStrategy[M]:
    """Messages of a class with any of their fields set, at any depth."""
    fields: Any = message_class.DESCRIPTOR.fields  # two classes to mypy, one in use
    # Deferred: a field's own type is looked into only when drawn.
    contents = st.deferred(
        lambda: st.fixed_dictionaries({}, optional={field.name: _field(field) for field in fields})
    )
    return contents.map(lambda content: message_class(**content))


def plain(message: Message) -> dict[str, Any]:
    """The fields that are set, as dicts, lists and scalars; text as its UTF-8 bytes, so that string equals bytes."""
    return {field.name: _plain_field(field, value) for field, value in message.ListFields()}


def _field(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    entry = field.message_type
    if entry and entry.GetOptions().map_entry:
        names = entry.fields_by_name
        return st.dictionaries(_single(names["key"]), _single(names["value"]), max_size=2)
    return st.lists(_single(field), max_size=2) if field.is_repeated else _single(field)


def _single(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type:
        return messages(GetMessageClass(field.message_type))
    if field.enum_type:
        return st.sampled_from([value.number for value in field.enum_type.values])
    return _SCALARS[field.type]


def _plain_field(field: FieldDescriptor, value: Any) -> Any:
    entry = field.message_type
    if entry and entry.GetOptions().map_entry:
        return {key: _plain_value(held) for key, held in value.items()}
    return [_plain_value(held) for held in value] if field.is_repeated else _plain_value(value)


def _plain_value(value: Any) -> Any:
    if isinstance(value, Message):
        return plain(value)
    return value.encode() if isinstance(value, str) else value
