from __future__ import annotations

import json
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim import errors
from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim._pb.cri.v1alpha2 import api_pb2 as v1alpha2
from cri_shim.image.registry.credentials import Credentials
from tests.unit.rpc.fakes import failure_of, make_image, serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.asyncio

A, B = "docker.io/library/a:1", "docker.io/library/b:1"


def spec(name: str) -> api.ImageSpec:
    return api.ImageSpec(image=name)


async def test_images_are_listed_and_filtered_in_both_versions(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        daemon.images.held = [make_image(1, A), make_image(2, B, pinned=True)]
        every = await clients.images.ListImages(api.ListImagesRequest())
        one = await clients.images.ListImages(
            api.ListImagesRequest(filter=api.ImageFilter(image=spec(B)))
        )
        none = await clients.images.ListImages(
            api.ListImagesRequest(filter=api.ImageFilter(image=spec("c")))
        )
        old = await clients.old_images.ListImages(v1alpha2.ListImagesRequest())
    assert [list(i.repo_tags) for i in every.images] == [[A], [B]]
    assert [(i.repo_tags[0], i.pinned) for i in one.images] == [(B, True)]
    assert not none.images
    assert [list(i.repo_tags) for i in old.images] == [[A], [B]]


async def test_more_images_than_a_message_holds_are_listed_as_a_stream(tmp_path: Path) -> None:
    names = [f"r.example/{'x' * 200}/{number}:1" for number in range(6000)]
    async with serving(tmp_path) as (daemon, clients):
        daemon.images.held = [make_image(number, name) for number, name in enumerate(names)]
        failure = await failure_of(clients.images.ListImages(api.ListImagesRequest()))
        pieces = [piece async for piece in clients.images.StreamImages(api.StreamImagesRequest())]
        one = [
            piece
            async for piece in clients.images.StreamImages(
                api.StreamImagesRequest(filter=api.ImageFilter(image=spec(names[7])))
            )
        ]
        none = [
            piece
            async for piece in clients.images.StreamImages(
                api.StreamImagesRequest(filter=api.ImageFilter(image=spec("c")))
            )
        ]
    assert failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(pieces) > 1
    assert [image.repo_tags[0] for piece in pieces for image in piece.images] == names
    assert [image.repo_tags[0] for piece in one for image in piece.images] == [names[7]]
    assert none == []


async def test_the_status_of_an_absent_image_is_empty_and_no_error(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, clients):
        answer = await clients.images.ImageStatus(api.ImageStatusRequest(image=spec(A)))
    assert not answer.HasField("image")


async def test_a_verbose_status_brings_a_document(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        daemon.images.held = [make_image(1, A, user="5")]
        brief = await clients.images.ImageStatus(api.ImageStatusRequest(image=spec(A)))
        verbose = await clients.images.ImageStatus(
            api.ImageStatusRequest(image=spec(A), verbose=True)
        )
    assert not brief.info
    assert verbose.image == brief.image
    info = json.loads(verbose.info["info"])
    assert info["imageSpec"] == {"config": {"User": "5"}}
    assert info["chainID"] == daemon.images.held[0].chain[-1]


async def test_a_verbose_status_of_a_damaged_image_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        daemon.images.held = [make_image(1, A)]
        daemon.images.damage = errors.CorruptStateError("blob 1: other bytes")
        answer = await clients.images.ImageStatus(
            api.ImageStatusRequest(image=spec(A), verbose=True)
        )
    assert answer.image.id == daemon.images.held[0].id
    assert json.loads(answer.info["info"])["imageSpec"] == {"damaged": "blob 1: other bytes"}


async def test_an_image_can_be_removed_twice(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        daemon.images.held = [make_image(1, A), make_image(2, B)]
        for _ in range(2):
            await clients.images.RemoveImage(api.RemoveImageRequest(image=spec(A)))
        assert [image.repo_tags for image in daemon.images.held] == [(B,)]


async def test_a_request_without_an_image_names_the_field(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, clients):
        for call in (
            clients.images.ImageStatus(api.ImageStatusRequest()),
            clients.images.RemoveImage(api.RemoveImageRequest()),
        ):
            failure = await failure_of(call)
            assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert ": image is required" in (failure.details() or "")


async def test_disk_use_is_told_for_images_and_containers(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, clients):
        answer = await clients.images.ImageFsInfo(api.ImageFsInfoRequest())
    (images,), (containers,) = answer.image_filesystems, answer.container_filesystems
    assert (images.used_bytes.value, images.inodes_used.value) == (4096, 7)
    assert (containers.used_bytes.value, containers.inodes_used.value) == (512, 3)
    assert images.fs_id.mountpoint == containers.fs_id.mountpoint == "/var/lib/cri-shim"
    assert images.timestamp > 0


async def test_a_pull_answers_the_id_and_hands_on_the_credentials(tmp_path: Path) -> None:
    auth = api.AuthConfig(
        auth="bWU6aHVudGVyMg==", server_address="https://r.example/v1/", identity_token="idt"
    )
    async with serving(tmp_path) as (daemon, clients):
        daemon.images.held = [make_image(1, A)]
        answer = await clients.images.PullImage(
            api.PullImageRequest(
                image=spec(A), auth=auth, sandbox_config=api.PodSandboxConfig(hostname="h")
            )
        )
        plain = await clients.old_images.PullImage(
            v1alpha2.PullImageRequest(image=v1alpha2.ImageSpec(image=A))
        )
        [(image, shown), (_, nothing)] = daemon.images.pulls
    assert answer.image_ref == plain.image_ref == daemon.images.held[0].id
    assert image == A
    assert nothing is None
    assert shown == Credentials(
        registry="r.example", username="me", password="hunter2", identity_token="idt"
    )


async def test_a_pull_needs_a_name_and_a_sound_auth(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, clients):
        nameless = await failure_of(clients.images.PullImage(api.PullImageRequest()))
        unsound = await failure_of(
            clients.images.PullImage(
                api.PullImageRequest(image=spec(A), auth=api.AuthConfig(auth="hunter2!"))
            )
        )
    assert nameless.code() is unsound.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert nameless.details() == "PullImageRequest: image is required"
    assert unsound.details() == "auth.auth: not base64"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.RegistryUnavailableError("r.example: refused"), grpc.StatusCode.UNAVAILABLE),
        (errors.RegistryAuthError("r.example: 401"), grpc.StatusCode.PERMISSION_DENIED),
        (errors.NotFoundError("image", A), grpc.StatusCode.NOT_FOUND),
        (errors.DamagedBlobError("digest"), grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_a_failed_pull_has_the_code_of_its_cause(
    tmp_path: Path, error: Exception, code: grpc.StatusCode
) -> None:
    async with serving(tmp_path) as (daemon, clients):
        daemon.images.pull_failure = error
        failure = await failure_of(clients.images.PullImage(api.PullImageRequest(image=spec(A))))
    assert failure.code() is code
    assert failure.details() == str(error)
