from __future__ import annotations

import pytest

from cri_shim.errors import InvalidArgumentError
from cri_shim.host.cgroups.placement import CgroupPath, cgroup_path, expand_slice, parent_directory


@pytest.mark.parametrize(
    ("parent", "spec_path", "relative_dir"),
    [
        ("/kubepods/burstable/pod1", "/kubepods/burstable/pod1/ab", "kubepods/burstable/pod1/ab"),
        ("kubepods//pod1/", "/kubepods/pod1/ab", "kubepods/pod1/ab"),
        ("", "/cri-shim/ab", "cri-shim/ab"),
        ("/", "/ab", "ab"),
    ],
)
def test_cgroupfs_driver_puts_the_container_below_its_parent(
    parent: str, spec_path: str, relative_dir: str
) -> None:
    assert cgroup_path(parent, "ab", systemd=False) == CgroupPath(spec_path, relative_dir)


@pytest.mark.parametrize(
    ("parent", "spec_path", "relative_dir"),
    [
        (
            "/kubepods.slice/kubepods-burstable.slice",
            "kubepods-burstable.slice:cri-shim:ab",
            "kubepods.slice/kubepods-burstable.slice/cri-shim-ab.scope",
        ),
        ("", "cri-shim.slice:cri-shim:ab", "cri.slice/cri-shim.slice/cri-shim-ab.scope"),
        ("-.slice", "-.slice:cri-shim:ab", "cri-shim-ab.scope"),
    ],
)
def test_systemd_driver_names_slice_and_scope(
    parent: str, spec_path: str, relative_dir: str
) -> None:
    assert cgroup_path(parent, "ab", systemd=True) == CgroupPath(spec_path, relative_dir)


@pytest.mark.parametrize("parent", ["../../etc", "/a/../..", "/a\nb", "a\x00b"])
@pytest.mark.parametrize("systemd", [False, True])
def test_parent_cannot_lead_out_of_the_tree(parent: str, systemd: bool) -> None:
    with pytest.raises(InvalidArgumentError):
        cgroup_path(parent, "ab", systemd=systemd)


@pytest.mark.parametrize(
    "name", ["/kubepods", "a--b.slice", "-a.slice", "a-.slice", ".slice", "x:y.slice"]
)
def test_what_is_no_slice_is_refused_with_the_systemd_driver(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="is not a slice"):
        parent_directory(name, systemd=True)


def test_slice_name_holds_its_place() -> None:
    assert expand_slice("a-b-c.slice") == "a.slice/a-b.slice/a-b-c.slice"


def test_a_slice_longer_than_a_directorys_name_is_refused_before_it_is_expanded() -> None:
    with pytest.raises(
        InvalidArgumentError, match="has 4006 characters; the limit for a slice is 255"
    ):
        parent_directory(f"{'a-' * 2000}.slice", systemd=True)
