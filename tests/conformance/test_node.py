"""crictl about the node: version, info, runtime-config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim import __version__

if TYPE_CHECKING:
    from tests.conformance.crictl import Crictl
    from tests.harness.daemon import Daemon


def test_version_names_the_runtime_and_the_api(crictl: Crictl) -> None:
    lines = dict(line.split(":", 1) for line in crictl("version").splitlines())
    said = {key: value.strip() for key, value in lines.items()}
    assert said["RuntimeName"] == "cri-shim"
    assert said["RuntimeVersion"] == __version__
    assert said["RuntimeApiVersion"] == "v1"


def test_info_says_that_runtime_and_network_are_ready(crictl: Crictl) -> None:
    conditions = crictl.json("info")["status"]["conditions"]
    ready = {condition["type"]: condition["status"] for condition in conditions}
    assert ready == {"RuntimeReady": True, "NetworkReady": True}


def test_info_shows_the_configuration_in_force(crictl: Crictl, daemon: Daemon) -> None:
    info = crictl.json("info")
    assert info["config"]["root"] == str(daemon.root)
    assert info["cni"]["networks"] == [daemon.name]


def test_runtime_config_names_the_cgroup_driver(crictl: Crictl) -> None:
    assert "CGROUPFS" in crictl("runtime-config")
