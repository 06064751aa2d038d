from __future__ import annotations

import asyncio
import io
import os
import sys
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import CorruptStateError, CriShimError, NotFoundError
from tests.unit.cli.image_commands import command, run
from tests.unit.rpc.fakes import FakeArchive, make_image, serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("quiet_server")]

A = "docker.io/library/a:1"


async def export(tmp_path: Path, *words: str, archive: FakeArchive | None = None) -> int:
    async with serving(tmp_path) as (daemon, _):
        daemon.images.held = [make_image(1, A)]
        daemon.images.archive = archive or FakeArchive([b"abc", b"def"])
        return await run(daemon.socket_path, "export", *words)


async def test_a_file_gets_the_archive_and_is_for_its_owner_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.tar"
    file.write_bytes(b"an older one")
    assert await export(tmp_path, A, str(file)) == 0
    assert file.read_bytes() == b"abcdef"
    assert file.stat().st_mode & 0o777 == 0o600
    assert capsys.readouterr().out.splitlines()[-1] == f"exported {A} to {file} (6 B)"


async def test_standard_output_gets_the_archive_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ([A], [A, "-"]):
        out = io.TextIOWrapper(io.BytesIO())
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", out)
            assert await export(tmp_path, *words) == 0
        assert out.buffer.getvalue() == b"abcdef"
    assert "exporting" in capsys.readouterr().err


async def test_a_terminal_is_spared_the_archive(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with pytest.raises(SystemExit) as ended:
        command("export", A)
    assert ended.value.code == 2
    assert "give FILE" in capsys.readouterr().err


async def test_an_export_that_fails_leaves_the_older_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    file.write_bytes(b"an older one")
    torn = FakeArchive([b"abc"], CorruptStateError("blob sha256:1 is damaged"))
    with pytest.raises(CriShimError, match=f"^cannot export {A}: blob sha256:1 is damaged$"):
        await export(tmp_path, A, str(file), archive=torn)
    with pytest.raises(NotFoundError):
        await export(tmp_path, "b:1", str(file))
    assert file.read_bytes() == b"an older one"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("a.tar")] == ["a.tar"]


async def test_a_full_disk_is_an_error_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(CriShimError, match="writing /dev/full: No space left"):
        await export(tmp_path, A, "/dev/full", archive=FakeArchive([bytes(100_000)] * 4))


async def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = asyncio.create_task(asyncio.to_thread(pipe.read_bytes))
    assert await export(tmp_path, A, str(pipe)) == 0
    assert await reading == b"abcdef"
    assert pipe.is_fifo()
