"""Limits in the words of an OCI runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import (
    InvalidArgumentError,
)
from tests.unit.sandbox.spec_node import Node

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_limit_of_processes_is_told_where_there_is_one(node: Node) -> None:
    resources = api.LinuxContainerResources(cpu_shares=512)
    assert "pids" not in node.limits.update_document(resources, 0)
    assert node.limits.update_document(resources, 7)["pids"] == {"limit": 7}


def test_a_limit_that_no_node_has_is_refused(node: Node) -> None:
    with pytest.raises(InvalidArgumentError, match="cpu_shares"):
        node.limits.update_document(api.LinuxContainerResources(cpu_shares=-1), 0)
