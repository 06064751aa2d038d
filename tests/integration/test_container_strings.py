"""Every string of a container's request, with the bytes that end a line or a string somewhere behind.

The class of CVE-2022-0811, CVE-2022-4318 and their kin. The strings are found in CRI's own description, so a new field
is tried as soon as it is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.integration.scene import Pod
from tests.unit.oci.spec.test_arbitrary import names_a_field_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import Descriptor, FieldDescriptor

    from tests.harness.client import Client

pytestmark = pytest.mark.integration

REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
}
COMPANIONS: dict[str, dict[str, Any]] = {
    "Mount": {"container_path": "/m", "host_path": "/usr/share"},
    "Device": {"host_path": "/dev/null", "container_path": "/dev/mine"},
    "SecurityProfile": {"profile_type": "Localhost"},
    "KeyValue": {"key": "A", "value": "Yg=="},
    "HugepageLimit": {"page_size": "2MB"},
}
"""What a message needs beside the string, to be looked at at all."""
NOWHERE = {
    "labels",
    "annotations",
    "metadata",
    "user_specified_image",
    "runtime_handler",
    "image_ref",
}
"""What is only kept, and given back as it came."""
TEXTS = ["a\0b", "a\r\nb", "\x7f\x1b[2J", "\u2028\u202e", ":%s$(id);../"]


def strings(descriptor: Descriptor, path: tuple[FieldDescriptor, ...] = ()) -> Iterator[Any]:
    """The ways to every string of a message."""
    for field in descriptor.fields:
        way = (*path, field)
        message = field.message_type
        if message is not None and message.GetOptions().map_entry:
            yield way
        elif message is not None and message.name != "WindowsContainerConfig":
            yield from strings(message, way)
        elif field.type == field.TYPE_STRING:
            yield way


def holding(way: tuple[FieldDescriptor, ...], text: str) -> Any:
    """A part of a request, as JSON, with the text at the end of the way."""
    field, rest = way[0], way[1:]
    if not rest:
        value: Any = {text: text} if field.message_type is not None else text
    else:
        assert field.message_type is not None
        value = COMPANIONS.get(field.message_type.name, {}) | holding(rest, text)
    if (field.is_repeated and not isinstance(value, dict | list)) or (field.is_repeated and rest):
        value = [value]
    return {field.name: value}


WAYS = {".".join(f.name for f in way): way for way in strings(api.ContainerConfig.DESCRIPTOR)}


@pytest.mark.parametrize("text", TEXTS)
def test_string_with_such_bytes_is_taken_for_what_it_is_or_refused_by_its_field(
    client: Client, image: str, text: str
) -> None:
    pod = Pod.run(client, image)
    for name, way in WAYS.items():
        for given in (text, f"/etc/{text}"):
            # Further words are the shell's to pass over.
            config = pod.container("sh", "-c", "exec sleep 3600", "sh")
            ParseDict(holding(way, given), config)
            if name.startswith("mounts.image."):
                config.mounts[0].host_path, config.mounts[0].readonly = "", True
            try:
                container = pod.start(config)
            except grpc.RpcError as error:
                code, said = error.code(), error.details() or ""
                # A program of that name is the runtime's to miss.
                missing = name == "command" and "unable to start container process" in said
                assert missing or code in REFUSALS, f"{name}: {code}: {said}"
                assert missing or names_a_field_of(config, said), f"{name}: {said}"
                assert not set("\0\n\x1b") & set(said), f"{name}: {said!r}"
                continue
            assert "\0" not in text or not NOWHERE.isdisjoint(f.name for f in way), name
            assert pod.asks(container, "id -u") == "0\n"
            client.remove(container)


def test_all_the_strings_are_found() -> None:
    assert {"command", "mounts.image_sub_path", "linux.security_context.run_as_username"} <= set(
        WAYS
    )
    assert len(WAYS) > 35
