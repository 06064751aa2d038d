from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import pytest

from cri_shim._pb.admin.v1 import admin_pb2
from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import (
    BadArchiveError,
    CniPluginError,
    CriShimError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from cri_shim.rpc.client import Client, errors_of, local_errors_of
from tests.unit.rpc.fakes import serving

if TYPE_CHECKING:
    from pathlib import Path

RUN = api.RunPodSandboxRequest(
    config=api.PodSandboxConfig(
        metadata=api.PodSandboxMetadata(name="web", namespace="default", uid="u1")
    )
)


def test_without_a_daemon_the_message_names_the_socket_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as failure:
        Client(tmp_path / "s.sock")
    text = str(failure.value)
    assert f"{tmp_path}/s.sock: there is no such socket" in text
    assert "cri-shim serve" in text


def test_a_socket_left_by_a_dead_daemon_is_told_apart(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(tmp_path / "s"))
    with pytest.raises(UnavailableError, match="nothing listens there"):
        Client(tmp_path / "s")


@pytest.mark.asyncio
async def test_every_service_can_be_called(tmp_path: Path) -> None:
    def calls(path: Path) -> tuple[str, int, str]:
        with Client(path) as client:
            return (
                client.runtime.Version(api.VersionRequest()).runtime_name,
                len(client.images.ListImages(api.ListImagesRequest()).images),
                client.admin.Info(admin_pb2.InfoRequest()).root,
            )

    async with serving(tmp_path) as (daemon, _):
        answers = await asyncio.to_thread(calls, daemon.socket_path)
    assert answers == ("cri-shim", 0, "/var/lib/cri-shim")


def run(path: Path) -> CriShimError:
    with Client(path) as client, pytest.raises(CriShimError) as failure, errors_of("no pod"):
        client.runtime.RunPodSandbox(RUN)
    return failure.value


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("raised", "expected", "text"),
    [
        (
            CniPluginError("bridge", "ADD", "no\n addresses"),
            UnavailableError,
            "no pod: CNI plugin bridge: ADD: no addresses",
        ),
        (NotFoundError("image", "x"), NotFoundError, "no pod: image 'x' not found"),
        (InvalidArgumentError("bad"), InvalidArgumentError, "no pod: bad"),
        (CriShimError("disk"), CriShimError, "no pod: disk"),
    ],
)
async def test_the_daemons_error_comes_back_as_one_line_of_the_same_kind(
    tmp_path: Path, raised: CriShimError, expected: type[CriShimError], text: str
) -> None:
    async with serving(tmp_path) as (daemon, _):
        daemon.pods.failure = raised
        error = await asyncio.to_thread(run, daemon.socket_path)
    assert isinstance(error, expected)
    assert str(error) == text


@pytest.mark.parametrize(
    ("raised", "kind", "text"),
    [
        (NotFoundError("image", "x"), NotFoundError, "no image: image 'x' not found"),
        (BadArchiveError("no\nimage"), InvalidArgumentError, "no image: no image"),
        (
            CriShimError("GET https://r.example/blob?sig=abc: 403"),
            CriShimError,
            "no image: GET https://r.example/blob?*** 403",
        ),
    ],
)
def test_an_error_of_a_call_without_a_daemon_is_what_the_daemon_would_have_told(
    raised: CriShimError, kind: type[CriShimError], text: str
) -> None:
    with pytest.raises(kind) as failure, local_errors_of("no image"):
        raise raised
    assert str(failure.value) == text
