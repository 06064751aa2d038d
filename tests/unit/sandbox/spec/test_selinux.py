from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.config.model import Switch
from cri_shim.errors import ConfigError, InvalidArgumentError
from cri_shim.oci.spec.selinux import level_of
from cri_shim.sandbox.spec import selinux as selinux_module
from cri_shim.sandbox.spec.host_paths import HostPath, resolve_host_paths
from cri_shim.sandbox.spec.selinux import SELinux, open_selinux
from tests.fakes.node_harness import container_config, pod_config

if TYPE_CHECKING:
    from pathlib import Path


def node(root: Path, enforce: str = "1") -> Path:
    (root / "sys/fs/selinux").mkdir(parents=True)
    (root / "sys/fs/selinux/enforce").write_text(enforce)
    contexts = root / "etc/selinux/targeted/contexts"
    contexts.mkdir(parents=True)
    (contexts / "lxc_contexts").write_text(
        'process = "system_u:system_r:container_t:s0"\nfile = "system_u:object_r:container_file_t:s0"\n'
    )
    return root


def opened(root: Path, taken: set[str] | None = None) -> SELinux:
    selinux = open_selinux(Switch.AUTO, lambda: taken or (), node(root))
    assert selinux is not None
    return selinux


@pytest.mark.parametrize(
    ("switch", "enforce", "labels"),
    [
        (Switch.AUTO, "1", True),
        (Switch.AUTO, "0", False),
        (Switch.ON, "0", True),
        (Switch.OFF, "1", False),
    ],
)
def test_switch(tmp_path: Path, switch: Switch, enforce: str, labels: bool) -> None:
    assert (open_selinux(switch, tuple, node(tmp_path, enforce)) is not None) is labels


def test_without_selinux_only_on_is_a_mistake(tmp_path: Path) -> None:
    assert open_selinux(Switch.AUTO, tuple, tmp_path) is None
    assert open_selinux(Switch.OFF, tuple, tmp_path) is None
    with pytest.raises(ConfigError, match=r"security\.selinux: on"):
        open_selinux(Switch.ON, tuple, tmp_path)


def test_policy_without_containers_is_a_mistake(tmp_path: Path) -> None:
    root = node(tmp_path)
    (root / "etc/selinux/targeted/contexts/lxc_contexts").unlink()
    with pytest.raises(ConfigError, match="container-selinux"):
        open_selinux(Switch.AUTO, tuple, root)


def test_no_level_is_given_to_two_pods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.randbelow", lambda _below: 5)
    taken: set[str] = set()
    selinux = opened(tmp_path, taken)
    taken.add(level_of(selinux.labels_of_sandbox(pod_config())))
    again = opened(tmp_path / "again", taken)
    assert level_of(again.labels_of_sandbox(pod_config())) not in taken


def test_pod_with_the_nodes_processes_has_no_process_label(tmp_path: Path) -> None:
    config = pod_config()
    config.linux.security_context.namespace_options.pid = api.NODE
    assert opened(tmp_path).labels_of_sandbox(config).process == ""


def test_container_has_its_pods_labels_unless_privileged(tmp_path: Path) -> None:
    selinux = opened(tmp_path)
    pod = selinux.labels_of_sandbox(pod_config())
    config = container_config()
    assert selinux.labels_of_container(config, pod) == pod
    config.linux.security_context.privileged = True
    assert selinux.labels_of_container(config, pod).process == ""


def test_only_volumes_that_ask_are_relabelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relabelled: list[str] = []
    monkeypatch.setattr(
        selinux_module, "relabel", lambda path, _label, **_options: relabelled.append(path)
    )
    config = container_config()
    config.mounts.add(host_path="/data/a", container_path="/a", selinux_relabel=True)
    config.mounts.add(host_path="/data/b", container_path="/etc/hosts")
    config.mounts.add(image=api.ImageSpec(image="i"), container_path="/i", selinux_relabel=True)
    resolved = {
        index: HostPath(path, missing=False, is_directory=True)
        for index, path in enumerate(("/disk/a", "/disk/b"))
    }
    opened(tmp_path).relabel_volumes(config, resolved, "label")
    assert relabelled == ["/disk/a"]


def test_volume_that_is_a_directory_of_the_node_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    config = container_config()
    config.mounts.add(host_path=str(tmp_path / "link"), container_path="/a", selinux_relabel=True)
    with pytest.raises(InvalidArgumentError, match="/etc"):
        opened(tmp_path / "node").relabel_volumes(config, resolve_host_paths(config), "label")


@pytest.mark.parametrize("swapped", ["link", "data", "data/volume"])
def test_cve_2021_43816_link_that_is_swapped_in_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped: str
) -> None:
    """Between the look at a volume and its relabelling whoever may write there puts another link."""
    (tmp_path / "data/volume").mkdir(parents=True)
    (tmp_path / "other/volume").mkdir(parents=True)
    (tmp_path / "link").symlink_to("data/volume")
    labelled: list[str] = []

    def note(path: str, _name: str, _value: bytes, **_options: object) -> None:
        labelled.append(os.readlink(path) if path.startswith("/proc/") else path)

    monkeypatch.setattr("os.setxattr", note)
    config = container_config()
    config.mounts.add(host_path=str(tmp_path / "link"), container_path="/a", selinux_relabel=True)
    resolved = resolve_host_paths(config)
    (tmp_path / swapped).rename(tmp_path / "away")
    (tmp_path / swapped).symlink_to(tmp_path / "other")
    selinux = opened(tmp_path / "node")
    if swapped == "link":
        selinux.relabel_volumes(config, resolved, "label")
        assert labelled == [str(tmp_path / "data/volume")]
    else:
        with pytest.raises(InvalidArgumentError, match="was replaced by a symbolic link"):
            selinux.relabel_volumes(config, resolved, "label")
        assert labelled == []
