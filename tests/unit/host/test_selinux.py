"""Labels on real files, where this process may set them; a node with SELinux as a tree of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cri_shim.errors import ConfigError, InvalidArgumentError
from cri_shim.host.selinux import XATTR, container_contexts, enforcing, label_file, relabel

LABEL = "system_u:object_r:container_file_t:s0:c1,c2"
NODES = ("/", "/usr", "/etc", "/tmp", "/home", "/run", "/var", "/root")


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A directory whose files can be labelled."""
    volume = tmp_path / "volume"
    volume.mkdir()
    try:
        os.setxattr(volume, XATTR, b"x\0")
    except OSError as error:
        pytest.skip(f"this process can't label files here: {error.strerror}")
    return volume


def label_of(path: Path) -> str:
    try:
        return os.getxattr(path, XATTR, follow_symlinks=False).decode().rstrip("\0")
    except OSError:
        return ""


def test_tree_is_labelled_and_links_are_not_followed(volume: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").touch()
    (volume / "a/b").mkdir(parents=True)
    (volume / "a/b/file").touch()
    (volume / "dir-link").symlink_to(outside)
    (volume / "file-link").symlink_to(outside / "secret")
    os.mkfifo(volume / "pipe")
    relabel(str(volume), LABEL, untouchable=NODES)
    for path in ("", "a", "a/b", "a/b/file", "dir-link", "file-link", "pipe"):
        assert label_of(volume / path) == LABEL, path
    assert label_of(outside) == label_of(outside / "secret") == ""


def test_single_file_is_labelled(volume: Path) -> None:
    (volume / "file").touch()
    relabel(str(volume / "file"), LABEL, untouchable=NODES)
    assert label_of(volume / "file") == LABEL


@pytest.mark.parametrize("path", ["volume/data", "volume/data/ssh"])
def test_cve_2021_43816_a_link_to_a_directory_of_the_node_is_not_followed(
    tmp_path: Path, path: str
) -> None:
    """A volume that a container filled: its link leads the node's relabelling to /etc."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "data").symlink_to("/etc")
    before = label_of(Path("/etc"))
    with pytest.raises(InvalidArgumentError, match="was replaced by a symbolic link"):
        relabel(str(tmp_path / path), LABEL, untouchable=NODES)
    assert label_of(Path("/etc")) == before


def test_directory_of_the_node_is_known_under_any_name() -> None:
    for path in ("/etc/../usr", "//etc", "/"):
        with pytest.raises(InvalidArgumentError, match="never relabelled"):
            relabel(path, LABEL, untouchable=NODES)


def test_file_system_without_labels_is_passed_over() -> None:
    relabel(os.path.realpath("/proc/self/task"), LABEL, untouchable=NODES)


def test_what_fits_already_is_left_alone(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (volume / "file").touch()
    relabel(str(volume), LABEL, untouchable=NODES)

    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("written again")

    monkeypatch.setattr("os.setxattr", refuse)
    relabel(str(volume), LABEL, untouchable=NODES)


def test_missing_volume_is_an_error_and_no_descriptor_stays(volume: Path, tmp_path: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        relabel(str(tmp_path / "missing"), LABEL, untouchable=NODES)
    relabel(str(volume), LABEL, untouchable=NODES)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_what_vanishes_meanwhile_is_nobodys_concern(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = [volume / name for name in ("one", "two", "three")]
    for each in beside:
        each.mkdir()
    read_label = os.getxattr

    def vanish(path: str, *args: object, **options: bool) -> bytes:
        """Whichever comes first, its neighbours go, whose names have been read."""
        there = [each for each in beside if each.exists()]
        if len(there) > 1 and Path(path).name in {each.name for each in there}:
            for each in there:
                if each.name != Path(path).name:
                    each.rmdir()
        return read_label(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("os.getxattr", vanish)
    relabel(str(volume), LABEL, untouchable=NODES)
    [stays] = [each for each in beside if each.exists()]
    assert label_of(stays) == LABEL


def test_one_file_of_ours(volume: Path) -> None:
    (volume / "hosts").touch()
    label_file(volume / "hosts", LABEL)
    assert label_of(volume / "hosts") == LABEL


@pytest.mark.parametrize(("text", "expected"), [("1", True), ("0", False), (None, None)])
def test_mode_is_the_kernels(tmp_path: Path, text: str | None, expected: bool | None) -> None:
    if text is not None:
        (tmp_path / "sys/fs/selinux").mkdir(parents=True)
        (tmp_path / "sys/fs/selinux/enforce").write_text(text)
    assert enforcing(tmp_path) is expected


def test_contexts_are_those_of_the_policy_in_use(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="container-selinux"):
        container_contexts(tmp_path)
    (tmp_path / "etc/selinux/mine/contexts").mkdir(parents=True)
    (tmp_path / "etc/selinux/config").write_text("# x\nSELINUX=enforcing\nSELINUXTYPE=mine\n")
    (tmp_path / "etc/selinux/mine/contexts/lxc_contexts").write_text("process = x")
    text, source = container_contexts(tmp_path)
    assert (text, source) == (
        "process = x",
        str(tmp_path / "etc/selinux/mine/contexts/lxc_contexts"),
    )
