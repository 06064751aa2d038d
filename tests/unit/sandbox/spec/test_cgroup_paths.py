"""Whose cgroup is where."""

from __future__ import annotations

import pytest

from cri_shim.errors import InvalidArgumentError
from cri_shim.sandbox.spec.cgroup_paths import CgroupPaths
from tests.fakes.node_harness import pod_config
from tests.unit.sandbox.records import make_container, make_sandbox


def test_a_pods_cgroup_is_its_own_or_the_configured_one() -> None:
    paths = CgroupPaths(systemd=False, default_parent="/shim")
    config = pod_config()
    assert paths.parent(config) == "/shim"
    config.linux.cgroup_parent = "/kubepods/pod1"
    assert paths.parent(config) == "/kubepods/pod1"
    assert paths.below("/kubepods/pod1", "c" * 64).relative_dir == f"kubepods/pod1/{'c' * 64}"


def test_an_object_with_a_record_is_found_by_it() -> None:
    paths = CgroupPaths(systemd=False, default_parent="/shim")
    for item in (make_sandbox(), make_container()):
        assert paths.of(item) == paths.below(item.record.cgroup_parent, item.id)
        assert paths.directory_of(item) == paths.of(item).relative_dir


def test_a_parent_that_the_driver_cannot_use_is_refused() -> None:
    config = pod_config()
    config.linux.cgroup_parent = "/kubepods/pod1"
    with pytest.raises(InvalidArgumentError, match="slice"):
        CgroupPaths(systemd=True, default_parent="").parent(config)
    config.linux.cgroup_parent = "/a/../.."
    with pytest.raises(InvalidArgumentError):
        CgroupPaths(systemd=False, default_parent="").parent(config)


def test_the_configured_parent_is_the_daemons_to_remove_unless_systemd_made_it() -> None:
    assert CgroupPaths(systemd=False, default_parent="").own_directory == "cri-shim"
    assert CgroupPaths(systemd=False, default_parent="/shim/pods").own_directory == "shim/pods"
    assert CgroupPaths(systemd=True, default_parent="shim.slice").own_directory == ""
