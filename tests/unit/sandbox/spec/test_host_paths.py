"""On real directories: what host paths and destinations turn out to be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import InvalidArgumentError, ProgramError, WrongStateError
from cri_shim.host.mountinfo import Mount
from cri_shim.sandbox.spec import host_paths
from cri_shim.sandbox.spec.host_paths import (
    HostPath,
    check_destinations,
    check_devices,
    check_pod_files,
    make_missing,
    make_working_directory,
    resolve_host_paths,
)


def config(host_path: Path | str, container_path: str = "/data", **fields: Any) -> Any:
    mount = api.Mount(host_path=str(host_path), container_path=container_path, **fields)
    return api.ContainerConfig(mounts=[mount])


def resolved(host_path: Path | str) -> HostPath:
    return resolve_host_paths(config(host_path))[0]


def test_links_of_the_node_are_followed(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/file").touch()
    (tmp_path / "link").symlink_to("dir")
    assert resolved(tmp_path / "link") == HostPath(
        f"{tmp_path}/dir", missing=False, is_directory=True
    )
    assert resolved(tmp_path / "link/file") == HostPath(
        f"{tmp_path}/dir/file", missing=False, is_directory=False
    )


def test_what_is_not_there_becomes_a_directory_later(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(".")
    found = resolve_host_paths(config(f"{tmp_path}/link/new/er/"))
    assert found == {0: HostPath(f"{tmp_path}/new/er", missing=True, is_directory=True)}
    assert not (tmp_path / "new").exists()
    make_missing(found)
    assert (tmp_path / "new/er").is_dir()
    make_missing(found)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("dangling", "leads to a dangling link"),
        ("dangling/below", "leads to a dangling link"),
        ("loop", "symbolic links"),
        ("file/below", "Not a directory"),
        ("missing/../x", "has '..' after a missing"),
        ("x" * 300, "too long"),
    ],
)
def test_path_that_leads_nowhere_is_refused_by_its_field(
    tmp_path: Path, path: str, says: str
) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "made-by-a-container")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgumentError, match=rf"mounts\[0\]\.host_path: .*{says}"):
        resolved(tmp_path / path)
    assert not (tmp_path / "made-by-a-container").exists()


def test_images_have_no_host_path() -> None:
    mount = api.Mount(container_path="/data", image=api.ImageSpec(image="x"), readonly=True)
    assert resolve_host_paths(api.ContainerConfig(mounts=[mount])) == {}


@pytest.mark.parametrize(
    ("propagation", "fields", "works"),
    [
        (api.PROPAGATION_BIDIRECTIONAL, ("shared:1",), True),
        (api.PROPAGATION_BIDIRECTIONAL, ("shared:1", "master:2"), True),
        (api.PROPAGATION_BIDIRECTIONAL, ("master:2",), False),
        (api.PROPAGATION_BIDIRECTIONAL, (), False),
        (api.PROPAGATION_HOST_TO_CONTAINER, ("master:2",), True),
        (api.PROPAGATION_HOST_TO_CONTAINER, ("shared:1",), True),
        (api.PROPAGATION_HOST_TO_CONTAINER, (), False),
        (api.PROPAGATION_PRIVATE, (), True),
    ],
)
def test_propagation_needs_a_mount_that_propagates(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    propagation: Any,
    fields: tuple[str, ...],
    works: bool,
) -> None:
    root = Mount(1, 0, "0:1", "/", Path("/"), "rw", fields, "ext4", "disk", "rw")
    monkeypatch.setattr(host_paths, "read_mounts", lambda: [root])
    wanted = config(tmp_path, propagation=propagation)
    if works:
        assert resolve_host_paths(wanted)
    else:
        with pytest.raises(WrongStateError, match=r"mounts\[0\]\.propagation: .*make-rshared /"):
            resolve_host_paths(wanted)


def test_only_a_proc_is_mounted_at_proc(tmp_path: Path) -> None:
    assert resolve_host_paths(config("/proc", "/proc"))
    with pytest.raises(InvalidArgumentError, match=r"mounts\[0\]\.host_path"):
        resolve_host_paths(config(tmp_path, "/x/../proc/"))


@pytest.mark.parametrize(
    ("path", "is_directory", "says"),
    [
        ("/file", True, "is a file in the image"),
        ("/link", True, "is a file in the image"),
        ("/dir", False, "is a directory in the image"),
        ("/file/below", True, "Not a directory"),
        ("/loop/x", True, "symbolic links"),
    ],
)
def test_destination_of_another_kind_is_refused(
    tmp_path: Path, path: str, is_directory: bool, says: str
) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("/file")  # the container's /file
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InvalidArgumentError, match=rf"mounts\[0\]\.container_path: .*{says}"):
        check_destinations(config("/h", path), {0: is_directory}, tmp_path)


def test_destination_that_fits_or_can_not_be_known_is_left_to_the_runtime(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "out").symlink_to("/etc")
    wanted = config("/h", "/dir")
    wanted.mounts.add(host_path="/h", container_path="/dir/file")
    wanted.mounts.add(host_path="/h", container_path="/new/place")
    wanted.mounts.add(host_path="/h", container_path="/out/hosts")
    wanted.mounts.add(host_path="/h", container_path="/dev/null")
    check_destinations(wanted, dict.fromkeys(range(5), True), tmp_path)


def a_spec(cwd: str, *mounts: str) -> dict[str, Any]:
    return {"process": {"cwd": cwd}, "mounts": [{"destination": each} for each in mounts]}


def with_devices(*paths: str) -> dict[str, Any]:
    return {"linux": {"devices": [{"path": path} for path in paths]}}


def test_device_at_what_the_image_has_is_refused(tmp_path: Path) -> None:
    (tmp_path / "opt/there").mkdir(parents=True)
    (tmp_path / "opt/file").touch()
    (tmp_path / "opt/loop").symlink_to("loop")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/x").touch()
    check_devices({"linux": {}}, config("/"), tmp_path)
    check_devices(with_devices("/opt/new", "/none/new", "/dev/x"), config("/"), tmp_path)
    check_devices(with_devices("/opt/there", "/opt/file"), config("/", "/opt"), tmp_path)
    for path in ("/opt/there", "/opt/file", "/opt/file/x", "/opt/loop"):
        with pytest.raises(InvalidArgumentError, match=f"devices.container_path: '{path}'"):
            check_devices(with_devices(path), config("/"), tmp_path)


POD_FILES: dict[str, Any] = {
    "mounts": [{"destination": path} for path in ("/proc", "/etc/hosts", "/etc/hostname")]
}


def test_image_with_something_else_where_a_file_of_the_pod_goes_is_refused(tmp_path: Path) -> None:
    check_pod_files(POD_FILES, config("/"), tmp_path)
    (tmp_path / "etc/resolv.conf").mkdir(parents=True)  # the pod brings none
    (tmp_path / "etc/hosts").symlink_to("/none")
    check_pod_files(POD_FILES, config("/"), tmp_path)
    (tmp_path / "etc/hostname").mkdir()
    with pytest.raises(InvalidArgumentError, match="image: '/etc/hostname': is a directory"):
        check_pod_files(POD_FILES, config("/"), tmp_path)
    check_pod_files(POD_FILES, config("/", "/etc"), tmp_path)
    (tmp_path / "etc/hostname").rmdir()
    (tmp_path / "etc/hostname").symlink_to("hostname")
    with pytest.raises(
        InvalidArgumentError, match="image: '/etc/hostname': in the image: Too many"
    ):
        check_pod_files(POD_FILES, config("/"), tmp_path)


def make_cwd(rootfs: Path, cwd: str, *mounts: str) -> None:
    me = (os.getuid(), os.getgid())
    make_working_directory(a_spec(cwd, *mounts), rootfs, me, "working_dir")


def test_working_directory_is_made_inside_the_root(tmp_path: Path) -> None:
    outside, rootfs = tmp_path / "outside", tmp_path / "rootfs"
    outside.mkdir()
    rootfs.mkdir()
    (rootfs / "out").symlink_to(outside)
    (rootfs / "up").symlink_to("../../../..")
    make_cwd(rootfs, "/srv/app")
    make_cwd(rootfs, "/up/here")
    assert (rootfs / "srv/app").is_dir()
    assert (rootfs / "here").is_dir()
    with pytest.raises(ProgramError, match="working_dir"):
        make_cwd(rootfs, "/out/x")  # a link that leads nowhere, inside
    assert os.listdir(outside) == []


@pytest.mark.parametrize(
    "target", ["/proc/self/fd/7", "proc/self", "/proc", "/dev/fd/7", "other", "up/../proc/1/root"]
)
def test_cve_2024_21626_link_of_the_image_to_a_descriptor_is_refused(
    tmp_path: Path, target: str
) -> None:
    """The image has directories where /proc and /dev will be, so that the link leads somewhere now."""
    for directory in ("proc/self/fd/7", "dev/fd/7", "proc/1/root", "up"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "other").symlink_to("proc/self/fd")
    (tmp_path / "work").symlink_to(target)
    with pytest.raises(InvalidArgumentError, match=r"working_dir: .*leads out of the container"):
        make_cwd(tmp_path, "/work")


def test_working_directory_on_a_mount_is_the_runtimes(tmp_path: Path) -> None:
    make_cwd(tmp_path, "/data/x", "/data")
    make_cwd(tmp_path, "/data", "/data")
    assert os.listdir(tmp_path) == []
    make_cwd(tmp_path, "/database", "/data")
    assert os.listdir(tmp_path) == ["database"]


def test_working_directory_where_a_file_is_can_not_be_entered(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for cwd in ("/file", "/file/below"):
        with pytest.raises(ProgramError, match=r"working_dir: .*cannot be entered"):
            make_cwd(tmp_path, cwd)
