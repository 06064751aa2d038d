from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING

import pytest

from cri_shim.cni.attachment import Attachment
from cri_shim.cni.invoke import PluginRunner, Verb
from cri_shim.errors import CniPluginError
from tests.fakes.clock import turn_over, until
from tests.fakes.cni_plugin import install_plugin

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.host.process import Reaper
    from tests.fakes.clock import MovableClock

pytestmark = pytest.mark.asyncio

ATTACHMENT = Attachment("c" * 64, "/run/netns/x", "eth0", "pods", args={"A": "1", "B": "2"})


@pytest.fixture
def runner(tmp_path: Path, reaper: Reaper) -> PluginRunner:
    install_plugin(tmp_path / "bin", "fake")
    return PluginRunner(reaper, [tmp_path / "absent", tmp_path / "bin"], timeout_s=20)


async def call(runner: PluginRunner, step: dict[str, object], **script: object) -> bytes:
    conf = {"cniVersion": "1.0.0", "name": "pods", "script": {"ADD": step, **script}}
    config = json.dumps(conf).encode()
    return await runner.run(Verb.ADD, "fake", config, ATTACHMENT, netns="/run/netns/x")


async def failure(runner: PluginRunner, step: dict[str, object]) -> CniPluginError:
    with pytest.raises(CniPluginError) as caught:
        await call(runner, step)
    return caught.value


async def test_a_plugin_is_told_its_parameters_and_nothing_of_our_environment(
    runner: PluginRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGISTRY_PASSWORD", "hunter2")
    answer = json.loads(await call(runner, {}, record=str(tmp_path / "calls")))
    assert answer["interfaces"][0]["name"] == "eth0"
    record = json.loads((tmp_path / "calls").read_text())
    assert record["env"] == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c" * 64,
        "CNI_NETNS": "/run/netns/x",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "A=1;B=2",
        "CNI_PATH": f"{tmp_path / 'absent'}:{tmp_path / 'bin'}",
    }
    assert set(record["names"]) - set(record["env"]) <= {"PATH", "LC_CTYPE"}


async def test_a_failing_plugins_own_words_and_code_are_the_error(runner: PluginRunner) -> None:
    error = await failure(runner, {"do": "fail", "code": 11, "msg": "no lease", "details": "full"})
    assert str(error) == "CNI plugin fake: ADD: no lease: full (code 11)"
    assert (error.plugin, error.command, error.code) == ("fake", "ADD", 11)


async def test_without_an_error_document_the_tail_of_stderr_is_the_error(
    runner: PluginRunner,
) -> None:
    error = await failure(runner, {"do": "die", "stderr": "panic: \x1b[31moh\n\ngoroutine 1\n"})
    assert str(error) == ("CNI plugin fake: ADD: exited with status 3: panic: ?[31moh goroutine 1")


async def test_garbage_on_stdout_is_shown_when_there_is_nothing_else(runner: PluginRunner) -> None:
    error = await failure(runner, {"do": "garbage", "status": 1, "text": "<html>" + "x" * 9000})
    assert str(error).startswith("CNI plugin fake: ADD: exited with status 1: <html>xxx")
    assert len(str(error)) < 2200


async def test_a_plugin_that_dies_of_a_signal_is_named_with_it(runner: PluginRunner) -> None:
    error = await failure(runner, {"do": "crash", "signal": 9})
    assert "was killed by SIGKILL: it printed nothing" in str(error)


async def test_a_flood_is_stopped_at_the_bound(runner: PluginRunner) -> None:
    error = await failure(runner, {"do": "flood", "bytes": 1 << 30})
    assert "printed more than 1048576 bytes" in str(error)


@pytest.mark.parametrize("helper", [False, True])
async def test_a_hanging_plugin_is_killed_with_its_helpers_at_the_deadline(
    tmp_path: Path, reaper: Reaper, helper: bool, clock: MovableClock
) -> None:
    install_plugin(tmp_path, "fake")
    runner = PluginRunner(reaper, [tmp_path], timeout_s=60)
    record = tmp_path / "calls"
    work = begin(runner, record, {"do": "hang", "helper": helper})
    await until(record.exists)
    clock.move(59)
    await turn_over()
    assert not work.done()
    clock.move(1)
    with pytest.raises(CniPluginError) as error:
        await work
    assert str(error.value) == "CNI plugin fake: ADD: no answer within 60 s; it was killed"
    # Killed, the helper is a moment from being gone: it is not the plugin's parent that collects it.
    await until(lambda: not processes_running(tmp_path / "fake"))


def begin(runner: PluginRunner, record: Path, step: dict[str, object]) -> asyncio.Future[bytes]:
    script = {"record": str(record), "ADD": step}
    config = json.dumps({"cniVersion": "1.0.0", "name": "pods", "script": script}).encode()
    return asyncio.ensure_future(runner.run(Verb.ADD, "fake", config, ATTACHMENT, netns=""))


async def test_a_cancelled_call_lets_the_plugin_finish(
    runner: PluginRunner, tmp_path: Path
) -> None:
    record, leases = tmp_path / "calls", tmp_path / "leases"
    leases.mkdir()
    script = {"record": str(record), "leases": str(leases), "ADD": {"delay": 0.3}}
    config = json.dumps({"cniVersion": "1.0.0", "name": "pods", "script": script}).encode()
    work = asyncio.ensure_future(runner.run(Verb.ADD, "fake", config, ATTACHMENT, netns=""))
    await until(record.exists)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert [lease.name for lease in leases.iterdir()] == [f"{'c' * 64}-eth0"]


@pytest.mark.parametrize("cancels", [1, 3])
async def test_a_plugin_that_hangs_on_after_a_cancellation_is_killed(
    tmp_path: Path, reaper: Reaper, cancels: int, clock: MovableClock
) -> None:
    install_plugin(tmp_path / "bin", "fake")
    runner = PluginRunner(reaper, [tmp_path / "bin"], timeout_s=200, cancel_grace_s=60)
    work = begin(runner, tmp_path / "calls", {"do": "hang", "helper": True})
    await until((tmp_path / "calls").exists)
    for _ in range(cancels):
        work.cancel()
        await turn_over()
    clock.move(59)
    await turn_over()
    assert not work.done()
    clock.move(1)
    with pytest.raises(asyncio.CancelledError):
        await work
    # Its helper is killed as well, but it is nobody's child here whose end one could await.
    await until(lambda: not processes_running(tmp_path / "bin" / "fake"))


async def test_a_plugin_that_fails_after_a_cancellation_fails_silently(
    runner: PluginRunner, tmp_path: Path
) -> None:
    work = begin(runner, tmp_path / "calls", {"do": "fail", "delay": 0.2})
    await until((tmp_path / "calls").exists)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work


async def test_a_missing_plugin_is_named_with_the_directories_searched(
    runner: PluginRunner, tmp_path: Path
) -> None:
    with pytest.raises(CniPluginError, match="no such executable in") as caught:
        await runner.run(Verb.DEL, "absent", b"{}", ATTACHMENT, netns="")
    assert f"{tmp_path / 'absent'} or {tmp_path / 'bin'}" in str(caught.value)


async def test_a_file_that_cannot_be_executed_is_an_error_of_the_plugin(
    runner: PluginRunner, tmp_path: Path
) -> None:
    broken = tmp_path / "bin" / "broken"
    broken.write_text("#!/nonexistent/interpreter\n")
    broken.chmod(0o755)
    with pytest.raises(CniPluginError, match="can't be executed: No such file"):
        await runner.run(Verb.ADD, "broken", b"{}", ATTACHMENT, netns="")


async def test_a_plugin_is_a_regular_executable_file_with_a_bare_name(
    runner: PluginRunner, tmp_path: Path
) -> None:
    directory = tmp_path / "bin"
    (directory / "folder").mkdir()
    (directory / "data").write_text("x")
    os.mkfifo(directory / "fifo", 0o777)
    (directory / "link").symlink_to("fake")
    assert runner.find("fake") == directory / "fake"
    assert runner.find("link") == directory / "link"
    for name in ("folder", "data", "fifo", "absent", "../bin/fake", "", "..", "."):
        assert runner.find(name) is None


def processes_running(program: Path) -> list[str]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(program).encode() in words:
            found.append(pid)
    return found
