"""Image volumes: what is to be mounted, and a path in it that can't lead out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import InvalidArgumentError, NotFoundError
from cri_shim.image.manifest import ImageConfig
from cri_shim.image.model import Image, LayerStack
from cri_shim.image.volume import check_sub_path, image_volume, open_sub_path
from tests.images import file, layer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes.registry import FakeRegistry
    from tests.unit.image.conftest import Node

IMAGE = Image("sha256:" + "1" * 64, ("r.example/a:1",), (), 1, ImageConfig(), False, (), ())


@pytest.mark.parametrize(
    ("given", "checked"),
    [("", ""), (".", ""), ("a", "a"), ("a//b/./c/", "a/b/c"), ("..a/b..", "..a/b.."), ("ä", "ä")],
)
def test_a_sub_path_is_what_is_left_of_it(given: str, checked: str) -> None:
    assert check_sub_path(given) == checked


@pytest.mark.parametrize("bad", ["/etc", "/", "..", "a/../../b", "a/..", "a\0b", "a/" * 3000])
def test_a_sub_path_that_leads_elsewhere_is_refused(bad: str) -> None:
    with pytest.raises(InvalidArgumentError, match="image_sub_path"):
        check_sub_path(bad)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_there_are_always_two_directories_to_mount(tmp_path: Path, count: int) -> None:
    names = tuple(f"{number}" for number in range(count))
    for name in names:
        (tmp_path / name).mkdir()
    for _ in range(2):
        volume = image_volume(IMAGE, LayerStack(tmp_path, names), "x")
    assert volume.lowers[:count] == volume.layers == names
    assert len(set(volume.lowers)) == len(volume.lowers) == max(2, count)
    assert all((tmp_path / name).is_dir() for name in volume.lowers)
    assert all(not os.listdir(tmp_path / name) for name in volume.lowers[count:])


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    """What a mounted volume would show."""
    root = tmp_path / "volume"
    (root / "models/v1").mkdir(parents=True)
    (root / "models/v1/weights").write_bytes(b"w")
    (root / "current").symlink_to("/models/v1")
    (root / "up").symlink_to("../../../../models")
    (root / "out").symlink_to(str(tmp_path / "secret"))
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "fifo")
    (tmp_path / "secret").mkdir()
    return root


def found(mounted: Path, sub_path: str) -> str:
    volume = image_volume(IMAGE, LayerStack(mounted.parent, ("0", "1")), sub_path)
    fd = open_sub_path(mounted, volume)
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("sub_path", "place"),
    [
        ("", ""),
        ("models", "/models"),
        ("models/v1/weights", "/models/v1/weights"),
        ("current", "/models/v1"),
        ("current/weights", "/models/v1/weights"),
        ("up/v1", "/models/v1"),
    ],
)
def test_a_sub_path_is_found_with_the_volume_as_root(
    mounted: Path, sub_path: str, place: str
) -> None:
    assert found(mounted, sub_path) == f"{mounted}{place}"


@pytest.mark.parametrize("sub_path", ["absent", "out", "models/v1/weights/x"])
def test_what_is_not_in_the_image_is_not_found(mounted: Path, sub_path: str) -> None:
    with pytest.raises(NotFoundError, match=r"image r\.example/a:1 has no such path"):
        found(mounted, sub_path)


@pytest.mark.parametrize("sub_path", ["loop", "fifo"])
def test_what_can_not_be_mounted_is_refused(mounted: Path, sub_path: str) -> None:
    with pytest.raises(InvalidArgumentError, match=sub_path):
        found(mounted, sub_path)


@pytest.mark.asyncio
async def test_the_layers_of_a_volume_stay_until_a_record_has_them(
    node: Node, registry: FakeRegistry
) -> None:
    registry.add("team/data", layer(file("a")), layer(file("b")), tag="1")
    image = await node.puller.pull(f"{registry.host}/team/data:1")
    with pytest.raises(NotFoundError, match="pull or import it first"):
        async with node.store.volume("absent:1"):
            pass
    with pytest.raises(InvalidArgumentError):
        async with node.store.volume(image.id, "../x"):
            pass
    async with node.store.volume(image.id, "a") as volume:
        await node.store.remove(image.id)
        assert all((volume.layers_dir / name).is_dir() for name in volume.layers)
        node.in_use |= set(volume.layers)
    await node.store.sweep()
    assert all((volume.layers_dir / name).is_dir() for name in volume.layers)
    node.in_use.clear()
    await node.store.sweep_after(image.id)
    assert not any((volume.layers_dir / name).exists() for name in volume.layers)
