"""What is decided before the kernel is asked; the mounts themselves are an integration test."""

from __future__ import annotations

from pathlib import Path

import pytest

from cri_shim.errors import ResourceExhaustedError
from cri_shim.host.mounts import (
    build_overlay_options,
    kernel_version,
    mount_overlay,
    unmount,
    unmount_below,
)
from tests.harness.mount_points import mounts_below

UPPER = Path("/r/upper")
WORK = Path("/r/work")


def test_writable_overlay_trusts_no_attribute_of_a_layer() -> None:
    assert build_overlay_options(["b", "a"], UPPER, WORK, volatile=False) == (
        "redirect_dir=nofollow,metacopy=off,index=off,"
        "upperdir=/r/upper,workdir=/r/work,lowerdir=b:a"
    )


def test_read_only_overlay_has_no_upper() -> None:
    assert build_overlay_options(["b", "a"], None, None, volatile=True) == (
        "redirect_dir=nofollow,metacopy=off,lowerdir=b:a"
    )


def test_what_a_container_syncs_syncs_no_disk_where_the_kernel_knows_that() -> None:
    plain = build_overlay_options(["b", "a"], UPPER, WORK, volatile=False).split(",")
    volatile = build_overlay_options(["b", "a"], UPPER, WORK, volatile=True).split(",")
    assert [option for option in volatile if option not in plain] == ["volatile"]
    assert [option for option in volatile if option != "volatile"] == plain


def test_separators_in_names_are_escaped() -> None:
    options = build_overlay_options(
        ["a,b", "c:d", "e\\f"], Path("/u,p"), Path("/w:k"), volatile=False
    )
    assert options.endswith(r"upperdir=/u\,p,workdir=/w\:k,lowerdir=a\,b:c\:d:e\\f")


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.1.0-38-amd64", (6, 1)),
        ("5.19.17", (5, 19)),
        ("6.6+", (6, 6)),  # a kernel built from a tree with changes
        ("6.10-rc3", (6, 10)),
        ("7", (0, 0)),
        ("", (0, 0)),
    ],
)
def test_kernel_version_is_found_in_every_form_of_a_release(
    release: str, version: tuple[int, int]
) -> None:
    assert kernel_version(release) == version


@pytest.mark.parametrize("name", ["", "/etc", "..", "a/../../b", "../x"])
def test_layer_name_stays_in_its_directory(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a path below"):
        mount_overlay(tmp_path, layers_dir=tmp_path, lowers=[name], upper=UPPER, work=WORK)


def test_overlay_needs_a_layer_and_both_directories(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        mount_overlay(tmp_path, layers_dir=tmp_path, lowers=[], upper=UPPER, work=WORK)
    with pytest.raises(ValueError, match="give both upper and work directory"):
        mount_overlay(tmp_path, layers_dir=tmp_path, lowers=["a"], upper=UPPER, work=None)


def test_options_beyond_one_page_are_refused_with_the_number_of_layers(tmp_path: Path) -> None:
    with pytest.raises(ResourceExhaustedError, match="the mount options for 100 layers have"):
        mount_overlay(
            tmp_path,
            layers_dir=tmp_path,
            lowers=[f"{number:064x}" for number in range(100)],
            upper=UPPER,
            work=WORK,
        )


def test_more_layers_than_the_kernel_stacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResourceExhaustedError, match="501 layers; the kernel's limit is 500"):
        mount_overlay(
            tmp_path,
            layers_dir=tmp_path,
            lowers=[f"{number:x}" for number in range(501)],
            upper=UPPER,
            work=WORK,
        )


def test_nothing_is_mounted_below_a_fresh_directory(tmp_path: Path) -> None:
    assert mounts_below(tmp_path) == []
    unmount_below(tmp_path)


def test_mounts_below_are_strictly_below_and_innermost_first() -> None:
    found = mounts_below(Path("/"))
    assert Path("/proc") in found
    assert Path("/") not in found
    assert [len(target.parts) for target in found] == sorted(
        (len(target.parts) for target in found), reverse=True
    )
    assert Path("/proc") not in mounts_below(Path("/proc"))


def test_unmounting_what_is_not_there_succeeds(tmp_path: Path) -> None:
    unmount(tmp_path / "none")
