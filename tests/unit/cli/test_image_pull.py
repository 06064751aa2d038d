from __future__ import annotations

import asyncio
import getpass
import io
import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import (
    ConfigError,
    InvalidArgumentError,
    RegistryUnavailableError,
    UnavailableError,
)
from cri_shim.image.model import PullProgress, PullStep
from cri_shim.image.registry.credentials import Credentials
from tests.fakes.clock import until
from tests.unit.cli.image_commands import command, run
from tests.unit.rpc.fakes import make_image, serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("quiet_server")]

A = "r.example/team/a:1"


async def credentials_shown(tmp_path: Path, *words: str) -> Credentials | None:
    async with serving(tmp_path) as (daemon, _):
        daemon.images.held = [make_image(1, A)]
        assert await run(daemon.socket_path, "pull", A, *words) == 0
        [(_, shown)] = daemon.images.pulls
    return shown


async def test_a_pull_ends_with_a_line_that_says_what_came(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(tmp_path) as (daemon, _):
        daemon.images.held = [make_image(1, A)]
        daemon.images.pull_steps = [
            PullProgress(PullStep.HERE, "sha256:1", 5, 5),
            PullProgress(PullStep.DONE, "sha256:2", 9, 9),
        ]
        assert await run(daemon.socket_path, "pull", A) == 0
        assert daemon.images.pulls == [(A, None)]
    assert capsys.readouterr().out.splitlines() == [
        "layer 1: already here, 5 B",
        "layer 2: done, 9 B",
        f"pulled {A} as 000000000000 (1000 B)",
    ]


async def test_a_failed_pull_is_one_line_with_the_registrys_words(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, _):
        daemon.images.pull_failure = RegistryUnavailableError("r.example: refused")
        with pytest.raises(
            UnavailableError, match=f"^cannot pull {A}: RegistryUnavailable: r.example: refused$"
        ):
            await run(daemon.socket_path, "pull", A)


@pytest.mark.parametrize("data", [b"me:hunter2:x\n", b"me:hunter2:x", b"me:hunter2:x\r\nmore"])
async def test_credentials_come_from_the_first_line_of_a_file(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "creds"
    file.write_bytes(data)
    shown = await credentials_shown(tmp_path, "--creds-file", str(file))
    assert shown == Credentials(username="me", password="hunter2:x")


async def test_credentials_come_from_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"me:hunter2\n")))
    shown = await credentials_shown(tmp_path, "--creds-file", "-")
    assert shown == Credentials(username="me", password="hunter2")


async def test_credentials_are_asked_for_on_a_terminal_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(getpass, "getpass", lambda _prompt: "me:hunter2")
    shown = await credentials_shown(tmp_path, "--creds-file", "-")
    assert shown == Credentials(username="me", password="hunter2")


async def test_credentials_come_from_a_docker_configuration(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(
        json.dumps(
            {
                "auths": {
                    "r.example": {"username": "other", "password": "x"},
                    "r.example/team": {"auth": "bWU6aHVudGVyMg==", "identitytoken": "idt"},
                }
            }
        )
    )
    shown = await credentials_shown(tmp_path, "--auth-file", str(file))
    assert shown == Credentials(
        registry="r.example", username="me", password="hunter2", identity_token="idt"
    )


@pytest.mark.parametrize("data", [b"", b"hunter2", b":hunter2", b"\xff:x"])
async def test_a_file_without_credentials_is_refused_without_showing_it(
    tmp_path: Path, data: bytes
) -> None:
    file = tmp_path / "creds"
    file.write_bytes(data)
    with pytest.raises(
        InvalidArgumentError, match=r"first line of .* is not USER:PASSWORD$"
    ) as failure:
        await asyncio.to_thread(command, "pull", A, "--creds-file", str(file))
    assert "hunter2" not in str(failure.value)


async def test_a_docker_configuration_must_have_something_for_the_registry(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"auths": {"other.example": {"auth": "bWU6aHVudGVyMg=="}}}')
    for text, kind, said in (
        (file.read_text(), InvalidArgumentError, f"has no credentials for {A}"),
        ("{", ConfigError, "^--auth-file: .*config.json"),
    ):
        file.write_text(text)
        with pytest.raises(kind, match=said):
            await asyncio.to_thread(command, "pull", A, "--auth-file", str(file))


async def test_ctrl_c_ends_the_pull_in_the_daemon_too(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, _):
        daemon.images.pull_hold = asyncio.Event()
        argv = [sys.executable, "-m", "cri_shim", "image", "pull", A]
        process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
            [*argv, "--socket", str(daemon.socket_path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        await until(lambda: daemon.images.pulls)
        process.send_signal(signal.SIGINT)
        code = await asyncio.to_thread(process.wait, 20)
        await until(lambda: daemon.images.pulls_abandoned)
        assert daemon.images.pulls_abandoned == 1
    assert code == 130
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == b""


async def test_only_one_source_of_credentials_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command("pull", A, "--creds-file", "-", "--auth-file", "x")
    assert ended.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


async def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        command("pull", A, "--creds-file", str(tmp_path / "nowhere"))
