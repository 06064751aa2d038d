"""`cri-shim wipe`: asking first, by the daemon or without it, and what is said of what is left."""

from __future__ import annotations

import asyncio
import io
import sys
from typing import TYPE_CHECKING

import pytest

from cri_shim._pb.admin.v1 import admin_pb2 as admin
from cri_shim.cli import wipe
from cri_shim.daemon import directories
from cri_shim.daemon.locks import root_lock
from cri_shim.errors import UnavailableError
from cri_shim.ids import new_id
from cri_shim.paths import Paths
from cri_shim.sandbox.recovery.wipe import Left
from tests.unit.cli.node_commands import command
from tests.unit.rpc.fakes import serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("quiet_server", "own_logging")


@pytest.fixture
def tmp_path(short_path: Path) -> Path:
    """The root of a daemon, with its sockets."""
    return short_path


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """For a root of the test's own."""
    monkeypatch.setattr(directories, "NETNS_DIR", tmp_path / "netns")
    values = {
        "root": tmp_path / "root",
        "state": tmp_path / "state",
        "listen": f'["unix://{tmp_path}/cri.sock"]',
    }
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


@pytest.mark.asyncio
async def test_a_daemon_that_answers_does_it(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(tmp_path) as (daemon, _):
        code = await asyncio.to_thread(command, wipe, "--yes", "--images", *options)
    assert (code, daemon.everything.asked) == (0, [True])
    assert capsys.readouterr().out.splitlines() == [
        "removing pods",
        "removed: 2 pods, 3 containers",
    ]
    assert not (tmp_path / "root").exists()


@pytest.mark.asyncio
async def test_what_is_left_is_a_line_each_and_a_failure(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(tmp_path) as (daemon, _):
        daemon.everything.wiped.left += [Left("sandbox 1a", "it is busy"), Left("b", "c\nd")]
        code = await asyncio.to_thread(command, wipe, "--yes", *options)
    assert code == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        "left: sandbox 1a: it is busy",
        "left: b: c d",
        "removed: 2 pods, 3 containers",
        "2 objects could not be removed: fix the cause and run `cri-shim wipe` again",
    ]


@pytest.mark.parametrize(("answer", "code"), [("n\n", 1), ("", 1), ("\n", 1), ("what?\n", 1)])
def test_it_asks_first_and_takes_nothing_but_yes_for_yes(
    tmp_path: Path,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str,
    code: int,
) -> None:
    (tmp_path / "root/sandboxes" / new_id()).mkdir(parents=True)
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    assert command(wipe, "--images", *options) == code
    out = capsys.readouterr().out
    assert f"Remove everything in {tmp_path}/root: 1 pod and 0 containers, and all images?" in out
    assert "nothing was removed" in out


@pytest.mark.asyncio
@pytest.mark.parametrize("answer", ["y\n", "YES\n"])
async def test_a_yes_is_enough(
    tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    async with serving(tmp_path) as (daemon, _):
        assert await asyncio.to_thread(command, wipe, *options) == 0
    assert daemon.everything.asked == [False]


def test_without_a_daemon_it_is_done_alone(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    leftover = Paths(tmp_path / "root", tmp_path / "state").container(new_id())
    leftover.root_dir.mkdir(parents=True)
    assert command(wipe, "--yes", *options) == 0
    assert capsys.readouterr().out.splitlines()[0] == "no daemon runs: recovering its state"
    assert not leftover.root_dir.exists()
    assert command(wipe, "--yes", *options) == 0


def test_a_root_that_another_process_has_is_left_alone(tmp_path: Path, options: list[str]) -> None:
    paths = Paths(tmp_path / "root", tmp_path / "state")
    with (
        root_lock(paths),
        pytest.raises(
            UnavailableError, match=r"nothing can be wiped without it either: .* in use by"
        ),
    ):
        command(wipe, "--yes", *options)


def test_a_daemon_that_was_named_is_asked_or_nobody(tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(UnavailableError, match="there is no such socket"):
        command(wipe, "--yes", "--socket", str(tmp_path / "other.sock"), *options)
    assert not (tmp_path / "root").exists()


def test_only_what_there_was_is_summed_up() -> None:
    sums = admin.WipeSums(sandboxes=1, leftovers=2, attachments=1, images=4)
    assert wipe.report(sums, []) == [
        "removed: 1 pod, 0 containers, 2 leftovers, 1 pending network delete, 4 images"
    ]
