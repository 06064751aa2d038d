"""v1 contains v1alpha2 on the wire, so that one implementation, with v1's messages, serves both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given, settings
from hypothesis import strategies as st

from cri_shim._pb.cri.v1 import api_pb2 as v1
from cri_shim._pb.cri.v1alpha2 import api_pb2 as v1alpha2

from .messages import messages, plain
from .tables import described, fields_by_path

if TYPE_CHECKING:
    from google.protobuf.message import Message

OLD = described(v1alpha2.DESCRIPTOR)
NEW = described(v1.DESCRIPTOR)

WIDENED = {"KeyValue.value": ("string", "bytes")}
"""Fields whose type differs though their bytes on the wire don't: all that is known and allowed."""

TRIED = [
    "RunPodSandboxRequest",
    "CreateContainerRequest",
    "UpdateContainerResourcesRequest",
    "ContainerStatusResponse",
    "ListContainerStatsResponse",
    "PullImageRequest",
]


def test_every_old_call_exists_with_the_same_messages() -> None:
    for service, calls in OLD["services"].items():
        new_calls = {call["name"]: call for call in NEW["services"][service]}
        assert {call["name"]: call for call in calls}.items() <= new_calls.items()


def test_every_old_field_exists_with_the_same_number_and_repetition() -> None:
    new_fields = fields_by_path(NEW)
    for path, old in fields_by_path(OLD).items():
        new = new_fields[path]
        assert (new["number"], new.get("repeated")) == (old["number"], old.get("repeated")), path


def test_types_differ_only_where_it_is_known_and_the_wire_agrees() -> None:
    new_fields = fields_by_path(NEW)
    differing = {
        path: (old["type"], new_fields[path]["type"])
        for path, old in fields_by_path(OLD).items()
        if old["type"] != new_fields[path]["type"]
    }
    assert differing == WIDENED


def test_no_old_number_means_something_else_now() -> None:
    for message, old in OLD["messages"].items():
        names = {field["number"]: field["name"] for field in NEW["messages"][message]["fields"]}
        assert {field["number"]: field["name"] for field in old["fields"]}.items() <= names.items()


def test_every_old_enum_value_keeps_its_number() -> None:
    for enum, values in OLD["enums"].items():
        assert values.items() <= NEW["enums"][enum].items(), enum


@pytest.mark.parametrize("name", TRIED)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_an_old_client_sends_reads_the_same_as_v1_and_goes_back_unchanged(
    name: str, data: st.DataObject
) -> None:
    old: Message = data.draw(messages(getattr(v1alpha2, name)))
    new: Message = getattr(v1, name).FromString(old.SerializeToString())

    assert plain(new) == plain(old)
    assert len(UnknownFieldSet(new)) == 0
    assert type(old).FromString(new.SerializeToString()) == old


def test_an_environment_value_of_any_bytes_is_read_by_v1_only() -> None:
    raw = v1.KeyValue(key="BINARY", value=b"\xff\x00\x80").SerializeToString()
    assert v1.KeyValue.FromString(raw).value == b"\xff\x00\x80"
    with pytest.raises(DecodeError):
        v1alpha2.KeyValue.FromString(raw)


def test_an_old_client_skips_what_only_v1_has() -> None:
    answer: dict[str, Any] = {"id": "c1", "image_id": "sha256:1", "stop_signal": v1.SIGNAL_SIGINT}
    old = v1alpha2.ContainerStatus.FromString(v1.ContainerStatus(**answer).SerializeToString())
    assert old.id == "c1"
