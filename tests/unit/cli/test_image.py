"""`cri-shim image`: its commands, and import, list and rm against a real server with an image store in memory."""

from __future__ import annotations

import asyncio
import io
import json
from typing import TYPE_CHECKING

import pytest

from cri_shim.cli import image
from cri_shim.cli.archive_stream import CHUNK_BYTES, ArchiveStream
from cri_shim.cli.image_daemon import DaemonImages
from cri_shim.cli.progress import Progress
from cri_shim.errors import BadArchiveError, CriShimError, NotFoundError
from cri_shim.rpc.client import Client
from tests.unit.cli.image_commands import command, run
from tests.unit.rpc.fakes import make_image, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("quiet_server")]

COMMANDS = ("pull", "import", "export", "list", "rm", "check", "gc")


async def test_an_archive_is_imported_with_plain_progress(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "image.tar"
    archive.write_bytes(b"x" * (3 * CHUNK_BYTES + 1))
    async with serving(tmp_path, max_message_bytes=2 * CHUNK_BYTES) as (daemon, _):
        code = await run(daemon.socket_path, "import", str(archive), "--name", "me/app:1")
        assert daemon.images.archives == [("me/app:1", archive.read_bytes())]
    assert code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("receiving the archive")
    assert lines[-1] == "imported me/app:1 as 000000000000"


async def test_a_layout_directory_arrives_as_a_tar_archive(tmp_path: Path) -> None:
    directory = tmp_path / "layout"
    directory.mkdir()
    (directory / "oci-layout").write_text("{}")
    async with serving(tmp_path) as (daemon, _):
        await run(daemon.socket_path, "import", str(directory))
        ((name, data),) = daemon.images.archives
    assert name is None
    assert data[257:262] == b"ustar"


async def test_the_daemons_refusal_is_the_commands_error(tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_bytes(bytes(20 * CHUNK_BYTES))
    async with serving(tmp_path, max_message_bytes=2 * CHUNK_BYTES) as (daemon, _):
        daemon.images.import_failure = BadArchiveError("no image in it")
        for daemon.images.fails_early in (False, True):
            with pytest.raises(CriShimError, match=r"^cannot import the image: no image in it$"):
                await run(daemon.socket_path, "import", str(tmp_path / "image.tar"))


class TornStream(ArchiveStream):
    """A file that can't be read to its end."""

    def chunks(self) -> Iterator[bytes]:
        yield b"abc"
        raise OSError(5, "Input/output error")


async def test_a_file_that_can_not_be_read_is_the_cause_that_is_told(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abcdef")

    def torn(socket_path: Path) -> None:
        with Client(socket_path) as client:
            image.import_archive(
                DaemonImages(client),
                TornStream(tmp_path / "f"),
                name="",
                progress=Progress(io.StringIO()),
            )

    async with serving(tmp_path) as (daemon, _):
        with pytest.raises(CriShimError, match=r"cannot read the image file: .*Input/output"):
            await asyncio.to_thread(torn, daemon.socket_path)
        assert not daemon.images.archives


async def test_images_are_listed_as_a_table_with_a_row_per_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(tmp_path) as (daemon, _):
        daemon.images.held = [make_image(0xAB << 244, "b:1", "a:1"), make_image(2)]
        await run(daemon.socket_path, "list")
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["IMAGE", "ID", "SIZE"]
    assert [row.split()[0] for row in rows] == ["(no", "a:1", "b:1"]
    assert "0ab000000000" in rows[1]


async def test_images_are_listed_for_scripts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(tmp_path) as (daemon, _):
        daemon.images.held = [
            make_image(1, "a:1", user="0", pinned=True, digests=["a@sha256:9"]),
            make_image(2, user="web"),
        ]
        await run(daemon.socket_path, "list", "--json")
    first, second = json.loads(capsys.readouterr().out)
    assert first == {
        "id": f"sha256:{1:064x}",
        "tags": ["a:1"],
        "digests": ["a@sha256:9"],
        "size": 1000,
        "user": "0",
        "pinned": True,
        "annotations": {},
    }
    assert (second["tags"], second["user"]) == ([], "web")


async def test_every_help_fits_one_screen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words in ([], *([name] for name in COMMANDS)):
        with pytest.raises(SystemExit):
            command(*words, "--help")
        text = capsys.readouterr().out
        assert len(text.splitlines()) <= 24
        assert max(map(len, text.splitlines())) <= 80


async def test_names_of_an_image_can_not_command_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(tmp_path) as (daemon, _):
        daemon.images.held = [make_image(1, "evil\x1b[2J:1")]
        await run(daemon.socket_path, "list")
    assert "\x1b" not in capsys.readouterr().out


async def test_images_are_removed_and_an_absent_one_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(tmp_path) as (daemon, _):
        daemon.images.held = [make_image(1, "a:1", "a:2"), make_image(2, "b:1")]
        assert await run(daemon.socket_path, "rm", "a:1") == 0
        with pytest.raises(NotFoundError, match="'a:1' not found: see `cri-shim image list`"):
            await run(daemon.socket_path, "rm", "a:1")
        assert [held.repo_tags for held in daemon.images.held] == [("b:1",)]
    assert capsys.readouterr().out == "removed a:1, a:2 (000000000000)\n"
