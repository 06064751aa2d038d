"""`cri-shim status` against a server in memory, and what it writes on a terminal and elsewhere."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from typing import TYPE_CHECKING

import pytest

from cri_shim.cli import status
from cri_shim.cli.status import lines_of
from cri_shim.cli.status_reading import Sight
from cri_shim.errors import CriShimError, UnavailableError
from cri_shim.operations import step
from tests.unit.cli.node_commands import POD, command, operation, sight
from tests.unit.rpc.fakes import make_sandbox, serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("quiet_server")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Watch:
    """Answers one sight after the other, then Ctrl-C."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *seen: Sight | CriShimError) -> None:
        self._seen = list(seen)
        monkeypatch.setattr(status, "look", self._look)
        monkeypatch.setattr(status, "time", self)

    def _look(self, _: object) -> Sight:
        now = self._seen.pop(0)
        if isinstance(now, CriShimError):
            raise now
        return now

    def sleep(self, _: float) -> None:
        if not self._seen:
            raise KeyboardInterrupt


@pytest.mark.asyncio
async def test_it_shows_what_the_daemon_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(tmp_path) as (daemon, _):
        words = ("--socket", str(daemon.socket_path))
        daemon.pods.sandboxes = [make_sandbox(POD)]
        with daemon.operations.begin("PullImage", "a:1"), step("asking the registry"):
            assert await asyncio.to_thread(command, status, *words) == 0
            out = capsys.readouterr().out
            assert await asyncio.to_thread(command, status, "--json", *words) == 0
    assert out.splitlines()[0].split() == [*status.HEADINGS[:-1], "WAITING", "FOR"]
    assert "also under way:\n  a:1: PullImage: asking the registry (0." in out
    document = json.loads(capsys.readouterr().out)
    assert document["pods"]
    assert [each["subject"] for each in document["operations"]] == ["a:1"]


@pytest.mark.asyncio
async def test_a_daemon_that_recovers_says_what_it_is_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(tmp_path, is_ready=False) as (daemon, _):
        with daemon.operations.begin("recovery", POD), step("runc delete"):
            await asyncio.to_thread(command, status, "--socket", str(daemon.socket_path))
    out = capsys.readouterr().out
    assert "cri-shim is recovering" in out
    assert f"{POD}: recovery: runc delete" in out


def test_without_a_daemon_there_is_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="cannot reach the daemon"):
        command(status, "--socket", str(tmp_path / "s"))


def test_a_node_without_pods_says_so() -> None:
    assert lines_of(Sight(0)) == ["no pods"]


def test_what_a_pod_is_called_can_not_command_a_terminal() -> None:
    seen = sight()
    seen.pods[0].metadata.name = "\x1b[2J"
    assert "\x1b" not in "\n".join(lines_of(seen))


@pytest.mark.asyncio
async def test_watching_elsewhere_is_a_table_after_the_other_and_survives_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Watch(monkeypatch, sight(), UnavailableError("it has gone"), sight())
    async with serving(tmp_path) as (daemon, _):
        words = ("--watch", "--socket", str(daemon.socket_path))
        assert await asyncio.to_thread(command, status, *words) == 0
        out = capsys.readouterr().out
        Watch(monkeypatch, sight(), UnavailableError("it has gone"))
        await asyncio.to_thread(command, status, "--json", *words)
    assert out.count("default/web") == 2
    assert "it has gone" in out
    assert "\x1b" not in out
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["pods"][0]["name"] == "default/web"
    assert second == {"error": "it has gone"}


@pytest.mark.asyncio
async def test_watching_on_a_terminal_is_drawn_in_place_and_fits_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Watch(monkeypatch, sight(), sight(*(operation("PullImage", f"a:{n}", "x") for n in range(50))))
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "12")
    async with serving(tmp_path) as (daemon, _):
        await asyncio.to_thread(command, status, "--watch", "--socket", str(daemon.socket_path))
    _, first, second = screen.getvalue().split("\x1b[H")
    for frame in (first, second):
        assert frame.endswith("\x1b[J")
        lines = frame.removesuffix("\x1b[J").splitlines()
        assert len(lines) <= 11
        assert all(len(line.removesuffix("\x1b[K")) < 60 for line in lines)
    assert second.splitlines()[-2].startswith("and 47 lines more")
