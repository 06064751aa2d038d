from __future__ import annotations

import json
import resource
from typing import TYPE_CHECKING

import pytest

from cri_shim.cli.checks import security
from cri_shim.cli.checks.row import Level, Node
from cri_shim.config.model import Switch
from cri_shim.config.values import CAPABILITIES
from tests.fakes.apparmor import FakeAppArmor
from tests.unit.cli.checks.trees import plant

if TYPE_CHECKING:
    from pathlib import Path

ALL = (1 << len(CAPABILITIES)) - 1


def with_capabilities(root: Path, effective: int, bounding: int = ALL) -> Node:
    return plant(
        root, {"/proc/self/status": f"CapEff:\t{effective:016x}\nCapBnd:\t{bounding:016x}\n"}
    )


def without(*names: str) -> int:
    mask = ALL
    for name in names:
        mask &= ~(1 << CAPABILITIES.index(name))
    return mask


def test_all_capabilities_are_ok(tmp_path: Path) -> None:
    assert security.capabilities(with_capabilities(tmp_path, ALL), ["KILL"]).level is Level.OK


def test_a_missing_capability_comes_with_its_cost(tmp_path: Path) -> None:
    row = security.capabilities(with_capabilities(tmp_path, without("SYS_RESOURCE")), [])
    assert row.level is Level.WARNING
    assert row.detail.startswith("missing SYS_RESOURCE: oom_score_adj cannot be lowered")


def test_without_sys_admin_the_daemon_cannot_work(tmp_path: Path) -> None:
    row = security.capabilities(with_capabilities(tmp_path, without("SYS_ADMIN", "KILL")), [])
    assert row.level is Level.FAILED
    assert "KILL: containers cannot be stopped; SYS_ADMIN:" in row.detail


def test_a_default_capability_outside_the_bounding_set_is_told(tmp_path: Path) -> None:
    node = with_capabilities(tmp_path, ALL, bounding=without("NET_RAW"))
    row = security.capabilities(node, ["NET_RAW", "KILL"])
    assert row.level is Level.WARNING
    assert "NET_RAW: it is in security.default_capabilities" in row.detail


def test_an_unreadable_proc_fails(tmp_path: Path) -> None:
    assert security.capabilities(plant(tmp_path, {"/proc/": ""}), []).level is Level.FAILED


def test_seccomp(tmp_path: Path) -> None:
    node = plant(tmp_path, {"/proc/sys/kernel/seccomp/actions_avail": "kill errno allow\n"})
    assert security.seccomp(node).detail == "actions kill errno allow"
    assert security.seccomp(plant(tmp_path / "old", {"/proc/": ""})).level is Level.WARNING


def test_apparmor_needs_its_parser_where_it_is_enabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = FakeAppArmor(tmp_path / "on", monkeypatch)
    monkeypatch.setenv("PATH", str(kernel.root / "bin"))
    node = Node(kernel.root)
    assert security.apparmor(node).level is Level.WARNING
    kernel.install_parser()
    assert security.apparmor(node).level is Level.OK
    row = security.apparmor(node, "mine")
    assert (row.level, "mine" in row.detail) == (Level.FAILED, True)
    kernel.load("mine")
    assert security.apparmor(node, "mine").level is Level.OK
    assert security.apparmor(node, "unconfined").level is Level.OK
    kernel.list.unlink()
    assert security.apparmor(node).level is Level.WARNING
    assert security.apparmor(plant(tmp_path / "off", {"/sys/": ""})).level is Level.OK


LXC_CONTEXTS = 'process = "u:r:container_t:s0"\nfile = "u:r:container_file_t:s0"'


@pytest.mark.parametrize(
    ("files", "switch", "level"),
    [
        ({"/sys/": ""}, Switch.AUTO, Level.OK),
        ({"/sys/": ""}, Switch.ON, Level.FAILED),
        ({"/sys/fs/selinux/enforce": "0"}, Switch.AUTO, Level.OK),
        ({"/sys/fs/selinux/enforce": "1"}, Switch.AUTO, Level.FAILED),
        ({"/sys/fs/selinux/enforce": "1"}, Switch.OFF, Level.OK),
        (
            {
                "/sys/fs/selinux/enforce": "1",
                "/etc/selinux/targeted/contexts/lxc_contexts": LXC_CONTEXTS,
            },
            Switch.AUTO,
            Level.OK,
        ),
    ],
)
def test_selinux_needs_a_container_policy_where_containers_are_labelled(
    tmp_path: Path, files: dict[str, str], switch: Switch, level: Level
) -> None:
    assert security.selinux(plant(tmp_path, files), switch).level is level


def test_hooks_that_could_not_run_are_a_warning(tmp_path: Path) -> None:
    assert security.oci_hooks([tmp_path], None).detail == "none"
    hook = {"version": "1.0.0", "hook": {"path": "/bin/true"}, "stages": ["prestart"]}
    hook |= {"when": {"always": True}}
    (tmp_path / "good.json").write_text(json.dumps(hook))
    assert security.oci_hooks([tmp_path], None).detail == "1 found"
    (tmp_path / "bad.json").write_text(json.dumps({**hook, "hook": {"path": "/nonexistent"}}))
    row = security.oci_hooks([tmp_path], None)
    assert (row.level, "/nonexistent" in row.detail) == (Level.WARNING, True)
    assert security.oci_hooks([], tmp_path / "none").level is Level.FAILED


def test_device_files_that_cannot_be_used_are_a_warning(tmp_path: Path) -> None:
    assert security.cdi_devices([tmp_path]).detail == "no devices"
    document = {"cdiVersion": "0.3.0", "kind": "a/b", "devices": [{"name": "x"}]}
    (tmp_path / "a.json").write_text(json.dumps(document))
    assert security.cdi_devices([tmp_path]).detail == "1 devices"
    (tmp_path / "b.yaml").write_text("a: [")
    assert security.cdi_devices([tmp_path]).level is Level.WARNING


@pytest.mark.parametrize(
    ("limits", "level"),
    [
        ((1024, 4096), Level.WARNING),
        ((1024, 524288), Level.OK),
        ((1024, resource.RLIM_INFINITY), Level.OK),
    ],
)
def test_few_open_files_are_a_warning(
    limits: tuple[int, int], level: Level, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: limits)
    assert security.open_files().level is level
