"""The `files` hierarchy as a tree of plain files: control files take what is written, lists of processes grow."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest

from cri_shim.errors import CriShimError, TooManyFilesError
from cri_shim.host.cgroups.tree import Cgroups

POD = "kubepods/pod1"
ONE = f"{POD}/one"


def node(root: Path, *, files: bool = True) -> Cgroups:
    """A v1 node with the controllers pids and, as openEuler's kernels, files."""
    (root / "proc/self").mkdir(parents=True)
    names = ("pids", "files") if files else ("pids",)
    lines = []
    for number, name in enumerate(names, 30):
        (root / "sys/fs/cgroup" / name).mkdir(parents=True)
        lines.append(
            f"{number} 25 0:{number} / /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}\n"
        )
    (root / "proc/self/mountinfo").write_text("".join(lines), encoding="ascii")
    return Cgroups.detect(root)


def hierarchy(root: Path, name: str = "files") -> Path:
    return root / "sys/fs/cgroup" / name


def runs(root: Path, *pids: int, relative_dir: str = ONE) -> None:
    """The OCI runtime has put processes into the container's cgroup."""
    directory = hierarchy(root, "pids") / relative_dir
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))


def held(root: Path, relative_dir: str = ONE) -> list[str]:
    return (hierarchy(root) / relative_dir / "cgroup.procs").read_text().split()


def limit(root: Path, relative_dir: str = ONE) -> str:
    return (hierarchy(root) / relative_dir / "files.limit").read_text()


def test_controller_is_found_where_it_is_mounted(tmp_path: Path) -> None:
    cgroups = node(tmp_path)
    assert "files" in cgroups.controllers
    assert cgroups.lack_of_files_limits == ""


def test_kernel_without_the_controller_is_said(tmp_path: Path) -> None:
    cgroups = node(tmp_path, files=False)
    assert "no cgroup v1 controller `files`" in cgroups.lack_of_files_limits
    assert cgroups.files_limit(ONE) is None
    cgroups.gather_files(ONE)
    with pytest.raises(CriShimError, match="no cgroup v1 controller"):
        cgroups.limit_files(ONE, 100)


def test_controller_of_version_2_is_none(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    hierarchy(tmp_path, "").mkdir(parents=True)
    (hierarchy(tmp_path, "") / "cgroup.controllers").write_text("cpu files\n")
    (tmp_path / "proc/self/mountinfo").write_text(
        "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    )
    assert "cgroup v1" in Cgroups.detect(tmp_path).lack_of_files_limits


def test_kernel_that_was_told_not_to_count_limits_nothing(tmp_path: Path) -> None:
    cgroups = node(tmp_path)
    (hierarchy(tmp_path) / "files.no_acct").write_text("1\n")
    assert "does not count open files" in cgroups.lack_of_files_limits
    (hierarchy(tmp_path) / "files.no_acct").write_text("0\n")
    assert cgroups.lack_of_files_limits == ""


def test_limit_is_written_before_the_process_is_put_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroups = node(tmp_path)
    runs(tmp_path, 71)
    opened: list[str] = []
    before = Path.open

    def note(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if mode != "r" and "b" not in mode:
            opened.append(path.name)
        return before(path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", note)
    cgroups.limit_files(ONE, 100)
    assert opened[-2:] == ["files.limit", "cgroup.procs"]
    assert (limit(tmp_path), held(tmp_path)) == ("100", ["71"])
    assert cgroups.files_limit(ONE) == 100


def test_no_limit_is_the_kernels_word_for_it(tmp_path: Path) -> None:
    cgroups = node(tmp_path)
    cgroups.limit_files(ONE, -1)
    assert limit(tmp_path) == "max"
    assert cgroups.files_limit(ONE) == -1


def test_what_enters_later_is_gathered_and_nobody_twice(tmp_path: Path) -> None:
    cgroups = node(tmp_path)
    runs(tmp_path, 71)
    cgroups.limit_files(ONE, 100)
    runs(tmp_path, 71, 72, 73)
    cgroups.gather_files(ONE)
    assert held(tmp_path) == ["71", "72", "73"]


def test_what_a_process_forks_while_it_is_gathered_is_gathered_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroups = node(tmp_path)
    lists = [[71], [71, 72], [71, 72, 73]]
    monkeypatch.setattr(cgroups, "pids", lambda _dir: lists.pop(0) if len(lists) > 1 else lists[0])
    cgroups.limit_files(ONE, 100)
    assert held(tmp_path) == ["71", "72", "73"]


def test_processes_below_the_containers_own_cgroups_are_inside(tmp_path: Path) -> None:
    cgroups = node(tmp_path)
    runs(tmp_path, 71)
    inner = hierarchy(tmp_path) / ONE / "inner"
    inner.mkdir(parents=True)
    (inner / "cgroup.procs").write_text("71\n")
    cgroups.limit_files(ONE, 100)
    assert not (hierarchy(tmp_path) / ONE / "cgroup.procs").exists()


def test_container_without_a_limit_has_no_cgroup_there(tmp_path: Path) -> None:
    cgroups = node(tmp_path)
    runs(tmp_path, 71)
    cgroups.gather_files(ONE)
    assert list(hierarchy(tmp_path).iterdir()) == []
    assert cgroups.files_limit(ONE) is None


def failing(monkeypatch: pytest.MonkeyPatch, number: int, times: int = 1000) -> None:
    """The kernel refuses processes, some times."""
    before = Path.open
    left = [times]

    def refuse(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if path.name == "cgroup.procs" and mode == "a" and left[0]:
            left[0] -= 1
            raise OSError(number, "no")
        return before(path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)


def test_process_with_more_files_than_are_left_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroups = node(tmp_path)
    runs(tmp_path, 71)
    failing(monkeypatch, errno.ENOSPC)
    with pytest.raises(TooManyFilesError, match="process 71 has more open files"):
        cgroups.limit_files(ONE, 2)


def test_process_that_has_ended_is_nobodys_concern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroups = node(tmp_path)
    lists = [[71], []]
    monkeypatch.setattr(cgroups, "pids", lambda _dir: lists.pop(0))
    failing(monkeypatch, errno.ESRCH)
    cgroups.limit_files(ONE, 100)


def test_process_that_can_not_be_caught_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroups = node(tmp_path)
    runs(tmp_path, 71)
    failing(monkeypatch, errno.ESRCH)
    with pytest.raises(CriShimError, match="1 are outside, such as process 71"):
        cgroups.limit_files(ONE, 100)


def test_any_other_refusal_is_the_kernels_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroups = node(tmp_path)
    runs(tmp_path, 71)
    failing(monkeypatch, errno.EACCES)
    with pytest.raises(PermissionError):
        cgroups.limit_files(ONE, 100)


def emptied(root: Path, relative_dir: str) -> None:
    """As the kernel does it: control files are no obstacle to rmdir."""
    for name in ("pids", "files"):
        for file in (hierarchy(root, name) / relative_dir).glob("*"):
            file.unlink()


def test_removal_takes_the_directory_and_those_above_that_hold_nothing(tmp_path: Path) -> None:
    cgroups = node(tmp_path)
    for name in ("one", "two"):
        runs(tmp_path, 71, relative_dir=f"{POD}/{name}")
        cgroups.limit_files(f"{POD}/{name}", 100)
        emptied(tmp_path, f"{POD}/{name}")
    asyncio.run(cgroups.remove(ONE))
    assert [each.name for each in (hierarchy(tmp_path) / POD).iterdir()] == ["two"]
    asyncio.run(cgroups.remove(f"{POD}/two"))
    assert list(hierarchy(tmp_path).iterdir()) == []
    assert (hierarchy(tmp_path, "pids") / POD).is_dir()  # the kubelet's to remove
    asyncio.run(cgroups.remove(f"{POD}/two"))


def test_parents_that_can_not_be_removed_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroups = node(tmp_path)
    (hierarchy(tmp_path) / POD).mkdir(parents=True)

    def refuse(_path: Path) -> None:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(Path, "rmdir", refuse)
    with pytest.raises(PermissionError):
        asyncio.run(cgroups.remove(ONE))


def test_parent_that_is_pruned_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroups = node(tmp_path)
    before = Path.mkdir
    failures = [2]

    def mkdir(path: Path, *args: Any, **options: Any) -> None:
        if path.name == "one" and options.get("parents") and failures[0]:
            failures[0] -= 1
            raise FileNotFoundError(errno.ENOENT, "gone", str(path))
        before(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    cgroups.limit_files(ONE, 100)
    assert limit(tmp_path) == "100"


@pytest.mark.parametrize("relative_dir", ["", "..", "a/../.."])
def test_root_is_never_limited(tmp_path: Path, relative_dir: str) -> None:
    with pytest.raises(ValueError, match="below the root"):
        node(tmp_path).limit_files(relative_dir, 100)
