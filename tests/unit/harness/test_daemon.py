"""The configuration of a test daemon: short paths, names with the token, settings merged."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from cri_shim.config import load_config
from tests.harness import isolation
from tests.harness.daemon import Daemon

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(isolation, "LOCK_DIR", tmp_path / "run")
    monkeypatch.setattr(isolation, "disk_dir", lambda: tmp_path / "disk")
    return "cri-tffff"


def test_every_name_carries_the_token(token: str) -> None:
    daemon = Daemon(token)
    for name in (
        daemon.name,
        daemon.bridge,
        daemon.cgroup_parent,
        str(daemon.root),
        str(daemon.state),
    ):
        assert token in name


def test_names_fit_what_the_kernel_allows() -> None:
    """IFNAMSIZ is 16 and a socket's path has 108 bytes, the terminating zero included."""
    name = f"{isolation.TOKEN_PREFIX}ffff-999"
    assert len(name) <= 15
    assert len(f"/run/{name}/attach/{'0' * 64}/attach") < 108


def test_its_configuration_is_valid_and_its_own(token: str) -> None:
    daemon = Daemon(token, settings={"cni": {"timeout": "3s"}, "events": {"enabled": False}})
    config = load_config(daemon.config_file)
    assert config.root == daemon.root
    assert float(config.cni.timeout_s) == 3.0
    assert config.cni.conf_dir == daemon.conf_dir, "merging keeps what is beside the override"
    assert config.sandbox.cgroup_parent == daemon.cgroup_parent
    assert not config.events.enabled


def test_two_daemons_share_nothing(token: str) -> None:
    first, second = Daemon(token), Daemon(token)
    assert first.subnet != second.subnet
    assert first.socket != second.socket
    assert first.bridge != second.bridge


def test_conflist_can_be_replaced(token: str) -> None:
    daemon = Daemon(token)
    daemon.write_conflist({"cniVersion": "1.0.0", "name": "other", "plugins": []})
    [file] = daemon.conf_dir.iterdir()
    assert json.loads(file.read_text())["name"] == "other"


def test_failpoint_chooses_the_other_main(token: str) -> None:
    daemon = Daemon(token)
    assert "cri_shim" in daemon.command_line()
    armed = daemon.command_line("sandbox netns 1 kill")
    assert "tests.harness.failpoint_daemon" in armed
    assert armed[-3:] == daemon.command_line()[-3:]
