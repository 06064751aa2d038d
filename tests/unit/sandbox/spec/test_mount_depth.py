"""On real directories: how deep mounts lie where an image, or a volume, has links on the way."""

from __future__ import annotations

import time
import timeit
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import InvalidArgumentError
from cri_shim.oci.spec.mounts import MAX_DEPTH
from cri_shim.sandbox.spec.mount_depth import MAX_WALK, check_depths

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    (tmp_path / "rootfs").mkdir()
    return tmp_path / "rootfs"


def check(rootfs: Path, *requested: str, **brought: Path | None) -> None:
    """`requested` mounts of an empty directory; `brought` (name below the root) come first, None without a source."""
    config = api.ContainerConfig(
        mounts=[api.Mount(host_path="/h", container_path=each) for each in requested]
    )
    mounts: list[dict[str, Any]] = [
        {
            "destination": f"/{name}",
            "type": "tmpfs" if source is None else "bind",
            "source": str(source),
        }
        for name, source in brought.items()
    ]
    mounts += [
        {"destination": each, "type": "bind", "source": str(rootfs / "nothing")}
        for each in requested
    ]
    check_depths({"mounts": mounts}, config, rootfs)


def test_mounts_as_deep_as_may_be_and_ordinary_links_pass(rootfs: Path) -> None:
    (rootfs / "run/lock").mkdir(parents=True)
    (rootfs / "var").mkdir()
    (rootfs / "var/run").symlink_to("../run")
    (rootfs / "up").symlink_to("../../../..")
    (rootfs / "file").touch()
    (rootfs / "deep").symlink_to("/m" * MAX_DEPTH)
    check(rootfs, "/var/run/lock/x", "/up/up/etc", "/file/x", "/deep", "/m" * MAX_DEPTH)


def test_link_of_the_image_that_leads_deeper_is_refused_by_its_mount(rootfs: Path) -> None:
    (rootfs / "ok").symlink_to("m")
    (rootfs / "l").symlink_to("/m" * MAX_DEPTH)
    deeper = rf"mounts\[1\]\.container_path: '/l/x': .* {MAX_DEPTH + 1} or more names deep"
    with pytest.raises(InvalidArgumentError, match=deeper):
        check(rootfs, "/ok", "/l/x")


def test_links_that_add_up_are_refused(rootfs: Path) -> None:
    (rootfs / "m").mkdir()
    (rootfs / "m/again").symlink_to("/".join(["n"] * (MAX_DEPTH // 2)))
    below = rootfs / "m" / "/".join(["n"] * (MAX_DEPTH // 2))
    below.mkdir(parents=True)
    (below / "more").symlink_to("/".join(["o"] * (MAX_DEPTH // 2)))
    check(rootfs, "/m/again")
    with pytest.raises(InvalidArgumentError, match=r"mounts\[0\]\.container_path: .*names deep"):
        check(rootfs, "/m/again/more")


def test_way_of_very_many_names_is_refused_however_deep_it_ends(rootfs: Path) -> None:
    (rootfs / "loop").symlink_to("loop")
    (rootfs / "to-and-fro").symlink_to("m/../" * MAX_WALK)
    (rootfs / "m").mkdir()
    for path in ("/loop", "/to-and-fro/x"):
        with pytest.raises(InvalidArgumentError, match=f"through more than {MAX_WALK} names"):
            check(rootfs, path)


def test_link_of_a_volume_counts_inside_the_root_of_the_container(
    rootfs: Path, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "l").symlink_to("/m" * MAX_DEPTH)
    check(rootfs, "/v/l", v=volume)
    with pytest.raises(InvalidArgumentError, match=r"mounts\[0\]\.container_path: '/v/l/x'"):
        check(rootfs, "/v/l/x", v=volume)
    (rootfs / "alias").symlink_to("v")
    with pytest.raises(InvalidArgumentError, match=r"mounts\[0\]\.container_path: '/alias/l/x'"):
        check(rootfs, "/alias/l/x", v=volume)


def test_mount_hides_what_lay_below_it_before(rootfs: Path, tmp_path: Path) -> None:
    for name in ("plain", "volume/x"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "volume/x/l").symlink_to("/m" * MAX_DEPTH)
    (rootfs / "a").symlink_to("v/x")
    with pytest.raises(InvalidArgumentError, match=r"'/v/x/l/y'"):
        check(rootfs, "/v/x/l/y", a=tmp_path / "plain", v=tmp_path / "volume")


def test_nothing_is_looked_up_below_what_the_kernel_brings(rootfs: Path) -> None:
    (rootfs / "dev").mkdir()
    (rootfs / "dev/l").symlink_to("/m" * MAX_DEPTH)
    check(rootfs, "/dev/l/x", dev=None)


def test_what_the_image_itself_brings_is_refused_by_the_image(rootfs: Path, tmp_path: Path) -> None:
    (rootfs / "data").symlink_to("/m" * (MAX_DEPTH + 1))
    with pytest.raises(InvalidArgumentError, match="image: '/data'"):
        check(rootfs, data=tmp_path)


def test_work_grows_with_the_number_of_mounts_and_no_faster(rootfs: Path) -> None:
    def cost_s(count: int) -> float:
        paths = [f"/v{number}/sub" for number in range(count)]
        work = partial(check, rootfs, *paths)
        return min(timeit.repeat(work, timer=time.thread_time, number=1, repeat=3))

    assert cost_s(4 * 256) < 8 * cost_s(256)
