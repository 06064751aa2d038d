"""The choice between the daemon and the store itself."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest
import yaml

from cri_shim.daemon.locks import root_lock
from cri_shim.errors import UnavailableError
from cri_shim.paths import Paths
from tests.unit.cli.image_commands import command
from tests.unit.rpc.fakes import make_image, serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("own_logging", "quiet_server")


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """Of a daemon that would have everything below the test's directory."""
    file = tmp_path / "config.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "root": str(tmp_path / "root"),
                "state": str(tmp_path / "state"),
                "listen": [f"unix://{tmp_path}/cri.sock"],
            }
        )
    )
    return file


@pytest.mark.asyncio
async def test_a_daemon_that_answers_is_asked(
    tmp_path: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(tmp_path) as (daemon, _):
        daemon.images.held = [make_image(1, "a:1")]
        await asyncio.to_thread(command, "list", "--config", str(config_file))
    assert "a:1" in capsys.readouterr().out
    assert not (tmp_path / "root").exists()


def test_without_a_daemon_the_store_is_opened(
    tmp_path: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("list", "--json", "--config", str(config_file)) == 0
    assert capsys.readouterr().out == "[]\n"
    assert (tmp_path / "root/images").is_dir()


def test_a_socket_that_nobody_listens_on_any_more_is_no_daemon(
    tmp_path: Path, config_file: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / "cri.sock"))
    assert command("gc", "--config", str(config_file)) == 0


def test_a_daemon_that_was_named_is_asked_or_nobody(tmp_path: Path, config_file: Path) -> None:
    words = ("list", "--config", str(config_file), "--socket", str(tmp_path / "other.sock"))
    with pytest.raises(UnavailableError, match="there is no such socket"):
        command(*words)
    assert not (tmp_path / "root").exists()


def test_a_root_that_is_in_use_though_its_socket_does_not_answer_is_explained(
    tmp_path: Path, config_file: Path
) -> None:
    with (
        root_lock(Paths(tmp_path / "root", tmp_path / "state")),
        pytest.raises(UnavailableError) as failure,
    ):
        command("list", "--config", str(config_file))
    text = str(failure.value)
    assert f"cannot reach the daemon on {tmp_path}/cri.sock: there is no such socket" in text
    assert f"root directory {tmp_path}/root is in use by process" in text
    assert "starting, stopping or hanging" in text
