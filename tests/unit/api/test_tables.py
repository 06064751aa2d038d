"""The protos say exactly what the published tables say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim._pb.cri.v1 import api_pb2 as v1
from cri_shim._pb.cri.v1alpha2 import api_pb2 as v1alpha2

from .tables import described, load_table

if TYPE_CHECKING:
    from google.protobuf.descriptor import FileDescriptor

FILES = {"v1": v1.DESCRIPTOR, "v1alpha2": v1alpha2.DESCRIPTOR}

both_versions = pytest.mark.parametrize(("version", "file"), FILES.items(), ids=FILES)


@both_versions
def test_the_package_is_the_one_that_clients_call(version: str, file: FileDescriptor) -> None:
    assert file.package == load_table(version)["package"]


@both_versions
def test_services_have_the_tables_calls_with_their_messages_and_streams(
    version: str, file: FileDescriptor
) -> None:
    assert described(file)["services"] == load_table(version)["services"]


@both_versions
def test_the_messages_are_the_tables_and_in_their_order(version: str, file: FileDescriptor) -> None:
    assert list(described(file)["messages"]) == list(load_table(version)["messages"])


@both_versions
def test_messages_have_the_tables_fields_to_the_last_option(
    version: str, file: FileDescriptor
) -> None:
    assert described(file)["messages"] == load_table(version)["messages"]


@both_versions
def test_enums_have_the_tables_values(version: str, file: FileDescriptor) -> None:
    assert described(file)["enums"] == load_table(version)["enums"]


def test_the_tables_are_not_empty() -> None:
    table = load_table("v1")
    assert sum(len(calls) for calls in table["services"].values()) == 43
    assert len(table["messages"]) > 150
    assert len(table["enums"]["Signal"]) == 66
