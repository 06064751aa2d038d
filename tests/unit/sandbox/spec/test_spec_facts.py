"""Facts of images and of seccomp profiles as the spec builders see them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import (
    InvalidArgumentError,
)
from cri_shim.sandbox.spec import spec_facts
from cri_shim.sandbox.spec.spec_facts import image_defaults, localhost_profile
from tests.unit.sandbox.spec_node import Node

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_everything_an_image_asks_for_is_passed_on(node: Node) -> None:
    image = node.image(
        entrypoint=("/e",), cmd=("c",), env=("A=1",), working_dir="/w", user="u", stop_signal="9"
    )
    defaults = image_defaults(image, "name")
    assert (defaults.name, defaults.entrypoint, defaults.cmd) == ("name", ("/e",), ("c",))
    assert (defaults.env, defaults.working_dir) == (("A=1",), "/w")
    assert (defaults.user, defaults.stop_signal) == ("u", "9")


# --- profiles and defaults ---------------------------------------------------------------------------------------


def with_profile(path: str) -> api.LinuxContainerSecurityContext:
    return api.LinuxContainerSecurityContext(
        seccomp=api.SecurityProfile(profile_type=api.SecurityProfile.Localhost, localhost_ref=path)
    )


def test_only_a_localhost_profile_is_read() -> None:
    assert localhost_profile(api.LinuxContainerSecurityContext()) is None
    default = api.SecurityProfile(profile_type=api.SecurityProfile.RuntimeDefault)
    assert localhost_profile(api.LinuxContainerSecurityContext(seccomp=default)) is None


def test_a_localhost_profile_is_read_and_understood(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}))
    assert localhost_profile(with_profile(str(path))) is not None


@pytest.mark.parametrize("case", ["missing", "garbage", "too large", "a directory", "a pipe"])
def test_a_profile_that_cannot_be_used_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    path = tmp_path / "profile.json"
    if case == "garbage":
        path.write_text("{")
    elif case == "too large":
        monkeypatch.setattr(spec_facts, "MAX_PROFILE_BYTES", 10)
        path.write_text(" " * 11)
    elif case == "a directory":
        path.mkdir()
    elif case == "a pipe":
        os.mkfifo(path)
    with pytest.raises(InvalidArgumentError, match="profile"):
        localhost_profile(with_profile(str(path)))


def test_a_relative_profile_is_refused() -> None:
    with pytest.raises(InvalidArgumentError):
        localhost_profile(with_profile("profile.json"))
