"""What containers are given of images: mounted while they are there, copied where an image declares it, gone after."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.daemon.images import layers_of
from cri_shim.errors import NotFoundError
from cri_shim.image.manifest import ImageConfig
from cri_shim.oci.spec.inputs import BindVolume
from cri_shim.sandbox.spec.volumes import make_volumes
from tests.fakes.node_harness import container_config
from tests.unit.sandbox.interruptions import record_steps, stop_at

if TYPE_CHECKING:
    from typing import Any

    from cri_shim.paths import ObjectPaths
    from cri_shim.sandbox.store.store import Container, Sandbox
    from tests.fakes.node_harness import NodeHarness
    from tests.unit.conftest import Observe

asynchronous = pytest.mark.asyncio


def with_image(path: str = "/data", image: str = "data") -> api.ContainerConfig:
    config = container_config()
    config.mounts.add(container_path="/first", host_path="/tmp")
    config.mounts.add(container_path=path, image=api.ImageSpec(image=image), readonly=True)
    return config


async def create(harness: NodeHarness, sandbox: Sandbox, config: api.ContainerConfig) -> Container:
    created = await harness.containers.create_container(sandbox.id, config, sandbox.config)
    return harness.containers.find(created)


def spec_of(harness: NodeHarness, container: Container) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(harness.paths.container(container.id).spec_file.read_bytes())
    return found


@asynchronous
async def test_image_is_mounted_named_in_the_record_and_gone_with_the_container(
    harness: NodeHarness,
) -> None:
    image = harness.images.add("data")
    sandbox = await harness.run_pod()
    before = harness.leftovers()
    container = await create(harness, sandbox, with_image())
    place = harness.paths.container(container.id).images_dir / "1"
    assert place in harness.kernel.mounts
    [bound] = [m for m in spec_of(harness, container)["mounts"] if m["destination"] == "/data"]
    assert bound["source"] == str(place)
    [volume] = container.record.image_volumes
    assert (volume.index, volume.image_id) == (1, image.id)
    assert set(volume.layers) <= layers_of([container])
    assert harness.images.held == []

    # The image is removed meanwhile: its layers go when nobody stands on them any more.
    harness.images.forget("data")
    await harness.containers.remove_container(container.id)
    assert harness.images.sweeps == 1
    assert harness.leftovers() == before


@asynchronous
async def test_layers_are_held_until_the_record_names_them(
    harness: NodeHarness, observe: Observe
) -> None:
    harness.images.add("data")
    sandbox = await harness.run_pod()
    held: list[list[str]] = []
    observe(lambda *_: held.append(list(harness.images.held)))
    await create(harness, sandbox, with_image())
    assert held[0] == ["data"]


@asynchronous
async def test_image_that_is_not_here_is_named_before_anything_is_made(
    harness: NodeHarness,
) -> None:
    sandbox = await harness.run_pod()
    before, passed = harness.leftovers(), len(harness.points.passed)
    with pytest.raises(NotFoundError, match="data"):
        await create(harness, sandbox, with_image())
    assert (harness.leftovers(), len(harness.points.passed)) == (before, passed)


STEPS = ("record", "bundle", "rootfs", "monitor", "image volumes", "process", "commit")


@asynchronous
async def test_its_mount_is_a_step_of_the_creation(harness: NodeHarness, observe: Observe) -> None:
    harness.images.add("data")
    sandbox = await harness.run_pod()
    seen = record_steps(observe)
    await create(harness, sandbox, with_image())
    assert tuple(seen) == STEPS


@asynchronous
@pytest.mark.parametrize("step", STEPS)
async def test_creation_stopped_at_any_step_leaves_nothing(
    harness: NodeHarness, observe: Observe, step: str
) -> None:
    harness.images.add("data")
    sandbox = await harness.run_pod()
    before = harness.leftovers()
    stop_at(observe, step)
    with pytest.raises(RuntimeError, match=f"stopped at {step}"):
        await create(harness, sandbox, with_image())
    await harness.settle()
    assert harness.leftovers() == before
    assert harness.images.held == []


@asynchronous
@pytest.mark.parametrize("point", ["overlay.mounted", "monitor.created"])
async def test_daemon_that_dies_meanwhile_leaves_nothing_to_the_next(
    harness: NodeHarness, point: str
) -> None:
    harness.images.add("data")
    sandbox = await harness.run_pod()
    before = harness.leftovers()
    call = harness.containers.create_container(sandbox.id, with_image(), sandbox.config)
    after = await harness.crashed_at(point, call)
    await after.recovery.run()
    await after.settle()
    left = after.leftovers()
    assert left.pop("watches", None) is not None
    before.pop("watches", None)
    assert left == before
    await after.close()


@asynchronous
async def test_declared_volumes_are_the_containers_own_unless_requested(
    harness: NodeHarness,
) -> None:
    config = ImageConfig(cmd=("sh",), volumes=("/a", "b", "/mine"))
    harness.images.add("declaring", config)
    sandbox = await harness.run_pod()
    request = container_config()
    request.image.image = "declaring"
    request.mounts.add(container_path="/mine/", host_path="/tmp")
    container = await create(harness, sandbox, request)
    paths = harness.paths.container(container.id)
    sources = {m["destination"]: m["source"] for m in spec_of(harness, container)["mounts"]}
    assert sources["/a"] == str(paths.volumes_dir / "0")
    assert sources["/b"] == str(paths.volumes_dir / "1")
    assert sources["/mine"] == "/tmp"
    await harness.containers.remove_container(container.id)
    assert not paths.root_dir.exists()


# --- with real files ---------------------------------------------------------------------------------------------


def volumes_of(
    harness: NodeHarness, *declared: str, root: tuple[int, int] | None = None
) -> ObjectPaths:
    paths = harness.paths.container("c" * 64)
    (paths.rootfs_dir / "data/sub").mkdir(parents=True)
    (paths.rootfs_dir / "data/sub/file").write_text("copied")
    (paths.rootfs_dir / "file").touch()
    (paths.rootfs_dir / "loop").symlink_to("loop")
    paths.root_dir.mkdir(parents=True)
    made = make_volumes(paths, declared, root)
    assert [each.container_path for each in made] == [
        d for d in declared if d not in ("/file", "/loop", "/file/x")
    ]
    return paths


def test_volume_has_what_the_image_has_there(harness: NodeHarness) -> None:
    paths = volumes_of(harness, "/data", "/file", "/new", "/loop", "/file/x")
    assert (paths.volumes_dir / "0/sub/file").read_text() == "copied"
    assert os.listdir(paths.volumes_dir / "2") == []
    assert sorted(os.listdir(paths.volumes_dir)) == ["0", "2"]


def test_empty_volume_belongs_to_the_pods_root(harness: NodeHarness) -> None:
    paths = volumes_of(harness, "/new", root=(os.getuid(), os.getgid()))
    info = (paths.volumes_dir / "0").stat()
    assert (info.st_uid, info.st_gid, info.st_mode & 0o777) == (os.getuid(), os.getgid(), 0o755)


def test_path_of_a_volume_never_leads_out(harness: NodeHarness) -> None:
    outside = harness.base / "outside"
    outside.mkdir()
    (outside / "secret").touch()
    paths = harness.paths.container("c" * 64)
    paths.rootfs_dir.mkdir(parents=True)
    paths.root_dir.mkdir(parents=True)
    (paths.rootfs_dir / "link").symlink_to(outside)
    up = "/" + "../" * 20 + str(outside)
    made = make_volumes(paths, ["/link", up, "/link/secret"], None)
    assert made == (
        BindVolume("/link", str(paths.volumes_dir / "0")),
        BindVolume(up, str(paths.volumes_dir / "1")),
        BindVolume("/link/secret", str(paths.volumes_dir / "2")),
    )
    assert [os.listdir(directory) for directory in paths.volumes_dir.iterdir()] == [[], [], []]
