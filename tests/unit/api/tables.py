"""Both sides of the comparison in one form: the published tables, and what the generated descriptors say.

The tables in tests/data/cri-api list every service, message and enum of a CRI version. `described` turns a file
descriptor into the same form, so that a difference of any kind shows as a difference of two dicts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import Descriptor, EnumDescriptor, FileDescriptor

Table = dict[str, Any]

_DATA_DIR = Path(__file__).parents[2] / "data" / "cri-api"

_SCALARS = {
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
}


def load_table(version: str) -> Table:
    """The table of one CRI version, "v1" or "v1alpha2"."""
    table: Table = json.loads((_DATA_DIR / f"{version}.json").read_bytes())
    return table


def described(file: FileDescriptor) -> Table:
    """What a generated file says, in the tables' form."""
    return {
        "package": file.package,
        "services": {name: _methods(service) for name, service in file.services_by_name.items()},
        "messages": {_local_name(message): _message(message) for message in all_messages(file)},
        "enums": {
            _local_name(enum): {value.name: value.number for value in enum.values}
            for enum in _all_enums(file)
        },
    }


def all_messages(file: FileDescriptor) -> Iterator[Descriptor]:
    """Every message of a file, nested ones too, without the entries that stand for maps."""
    to_visit = list(file.message_types_by_name.values())
    while to_visit:
        message = to_visit.pop(0)
        yield message
        to_visit[:0] = [inner for inner in message.nested_types if not _is_map_entry(inner)]


def fields_by_path(table: Table) -> dict[str, dict[str, Any]]:
    """Every field of a table under "Message.field"."""
    return {
        f"{message}.{field['name']}": field
        for message, content in table["messages"].items()
        for field in content["fields"]
    }


def _all_enums(file: FileDescriptor) -> Iterator[EnumDescriptor]:
    yield from file.enum_types_by_name.values()
    for message in all_messages(file):
        yield from message.enum_types


def _methods(service: Any) -> list[dict[str, Any]]:
    methods = []
    for method in service.methods:
        row = {
            "name": method.name,
            "request": _local_name(method.input_type),
            "response": _local_name(method.output_type),
        }
        if method.client_streaming:
            row["client_streaming"] = True
        if method.server_streaming:
            row["server_streaming"] = True
        methods.append(row)
    return methods


def _message(message: Descriptor) -> dict[str, Any]:
    proto = DescriptorProto()
    message.CopyToProto(proto)
    reserved: list[int | str] = [
        number for span in proto.reserved_range for number in range(span.start, span.end)
    ]
    return {
        "reserved": reserved + list(proto.reserved_name),
        "fields": [_field(field) for field in message.fields],
    }


def _field(field: FieldDescriptor) -> dict[str, Any]:
    row: dict[str, Any] = {"name": field.name, "number": field.number, "type": _type(field)}
    if field.is_repeated and not row["type"].startswith("map<"):
        row["repeated"] = True
    options = field.GetOptions()
    row.update({flag: True for flag in ("deprecated", "debug_redact") if getattr(options, flag)})
    return row


def _type(field: FieldDescriptor) -> str:
    if field.message_type and _is_map_entry(field.message_type):
        entry = field.message_type.fields_by_name
        return f"map<{_type(entry['key'])}, {_type(entry['value'])}>"
    named = field.message_type or field.enum_type
    return _local_name(named) if named else _SCALARS[field.type]


def _local_name(named: Descriptor | EnumDescriptor) -> str:
    return named.full_name.removeprefix(named.file.package + ".")


def _is_map_entry(message: Descriptor) -> bool:
    return message.GetOptions().map_entry
