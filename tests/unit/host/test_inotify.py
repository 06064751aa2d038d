from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import pytest

from cri_shim.host import inotify
from cri_shim.host.inotify import IN_CREATE, IN_DELETE, IN_MOVED_TO, DirectoryWatch, parse_events
from tests.fakes.clock import turn_over, until


def test_events_are_split_at_their_padded_names() -> None:
    data = (
        struct.pack("iIII16s", 1, IN_CREATE, 0, 16, b"one")
        + struct.pack("iIII", -1, inotify.IN_Q_OVERFLOW, 0, 0)
        + struct.pack("iIII16s", 1, IN_DELETE, 0, 16, b"\xff.conf")
    )
    assert list(parse_events(data)) == [
        (IN_CREATE, "one"),
        (inotify.IN_Q_OVERFLOW, ""),
        (IN_DELETE, "\udcff.conf"),
    ]


@pytest.mark.asyncio
async def test_asked_for_events_are_told_in_order(tmp_path: Path) -> None:
    seen: list[str | None] = []
    watch = DirectoryWatch(tmp_path, IN_MOVED_TO | IN_DELETE, seen.append)
    (tmp_path / "a.tmp").touch()
    (tmp_path / "a.tmp").rename(tmp_path / "a")
    (tmp_path / "a").unlink()
    await turn_over()
    assert seen == ["a", "a"]
    watch.close()
    watch.close()
    (tmp_path / "b").touch()
    await turn_over()
    assert seen == ["a", "a"]
    assert not watch.lost


@pytest.mark.asyncio
async def test_what_was_read_is_not_delivered_after_close(tmp_path: Path) -> None:
    seen: list[str | None] = []

    def close_at_first(name: str | None) -> None:
        seen.append(name)
        watch.close()

    watch = DirectoryWatch(tmp_path, IN_CREATE, close_at_first)
    for name in "abc":
        (tmp_path / name).touch()
    await turn_over()
    assert seen == ["a"]


@pytest.mark.asyncio
async def test_callback_that_raises_costs_no_other_event(tmp_path: Path) -> None:
    seen: list[str | None] = []
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    def fail_at_a(name: str | None) -> None:
        seen.append(name)
        if name == "a":
            raise ValueError(name)

    watch = DirectoryWatch(tmp_path, IN_CREATE, fail_at_a)
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    await turn_over()
    assert seen == ["a", "b"]
    assert len(reported) == 1
    watch.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["rmdir", "rename"])
async def test_directory_that_goes_away_is_told_once(tmp_path: Path, how: str) -> None:
    watched = tmp_path / "dir"
    watched.mkdir()
    seen: list[str | None] = []
    watch = DirectoryWatch(watched, IN_CREATE, seen.append)
    if how == "rmdir":
        watched.rmdir()
    else:
        watched.rename(tmp_path / "other")
    await turn_over()
    assert seen == [None]
    assert watch.lost
    watch.close()


@pytest.mark.asyncio
async def test_lost_events_ask_for_a_rescan(tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    seen: list[str | None] = []
    watch = DirectoryWatch(tmp_path, IN_CREATE | IN_DELETE, seen.append)
    name = tmp_path / "a"
    for _ in range(limit // 2 + 2):
        name.touch()
        name.unlink()
    (tmp_path / "last").touch()
    await until(lambda: None in seen)
    assert not watch.lost
    watch.close()


@pytest.mark.asyncio
async def test_missing_directory_and_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        DirectoryWatch(tmp_path / "none", IN_CREATE, lambda _: None)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        DirectoryWatch(tmp_path / "file", IN_CREATE, lambda _: None)
