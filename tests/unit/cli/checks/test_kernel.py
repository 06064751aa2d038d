from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim.cli.checks import kernel
from cri_shim.cli.checks.row import Level
from tests.unit.cli.checks.trees import plant

if TYPE_CHECKING:
    from pathlib import Path

NS = {f"/proc/self/ns/{name}": "" for name in (*kernel.NAMESPACES, "user")}


@pytest.mark.parametrize(
    ("release", "level"),
    [
        ("6.18.4-fc", Level.OK),
        ("5.6", Level.OK),
        ("5.5.19-generic", Level.WARNING),
        ("4.18.0-553.el8.x86_64", Level.WARNING),
        ("", Level.FAILED),
    ],
)
def test_an_old_kernel_is_told(tmp_path: Path, release: str, level: Level) -> None:
    node = plant(tmp_path, {"/proc/sys/kernel/osrelease": release + "\n"})
    row = kernel.kernel_version(node)
    assert row.level is level
    assert bool(row.remedy) is (level is not Level.OK)


def test_the_calls_of_this_kernel_are_there() -> None:
    assert kernel.kernel_calls().level is Level.OK


def test_a_call_that_the_kernel_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setitem(kernel.CALLS, "openat2", missing)
    row = kernel.kernel_calls()
    assert (row.level, row.detail) == (Level.FAILED, "missing or forbidden: openat2")


def test_a_missing_namespace_fails(tmp_path: Path) -> None:
    names = dict(NS)
    del names["/proc/self/ns/cgroup"]
    row = kernel.namespaces(plant(tmp_path, names))
    assert (row.level, row.detail) == (Level.FAILED, "this kernel lacks: cgroup")


@pytest.mark.parametrize(
    ("limit", "level"), [("96365", Level.OK), ("0", Level.WARNING), (None, Level.WARNING)]
)
def test_user_namespaces_may_be_off(tmp_path: Path, limit: str | None, level: Level) -> None:
    files = NS if limit is None else {**NS, "/proc/sys/user/max_user_namespaces": limit}
    assert kernel.user_namespaces(plant(tmp_path, files)).level is level


def test_an_overlay_that_cannot_be_mounted_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr("cri_shim.host.mounts.mount_overlay", refuse)
    row = kernel.overlayfs(tmp_path / "root")
    assert (row.level, row.remedy) == (Level.FAILED, "modprobe overlay")
    assert row.detail == f"cannot be mounted on {tmp_path}: No such device"
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_cannot_be_written_to_fails(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    row = kernel.overlayfs(blocker)
    assert row.level is Level.FAILED
    assert "cannot write to" in row.detail
