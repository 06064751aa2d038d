from __future__ import annotations

import grp
import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import AlreadyExistsError, ConfigError
from cri_shim.rpc.socket_file import MAX_PATH_BYTES, SocketFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Listener:
    """A socket that listens where it is told."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(os.fspath(path))
        self.socket.listen()

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def listeners() -> Iterator[list[Listener]]:
    opened: list[Listener] = []
    yield opened
    for listener in opened:
        listener.close()


def published(file: SocketFile, listeners: list[Listener]) -> None:
    file.prepare()
    listeners.append(Listener(file.bind_path))
    file.publish()


def file_at(path: Path, *, mode: int = 0o660, group: str = "") -> SocketFile:
    return SocketFile(path, mode=mode, group=group)


def test_a_published_socket_has_its_mode_and_group(
    tmp_path: Path, listeners: list[Listener]
) -> None:
    path = tmp_path / "run" / "s.sock"
    group = grp.getgrgid(os.getgid()).gr_name
    published(file_at(path, mode=0o620, group=group), listeners)
    found = path.stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o620
    assert found.st_gid == os.getgid()
    assert os.listdir(path.parent) == ["s.sock"]


def test_a_socket_is_not_reachable_before_its_mode_is_set(
    tmp_path: Path, listeners: list[Listener]
) -> None:
    file = file_at(tmp_path / "s.sock")
    file.prepare()
    listeners.append(Listener(file.bind_path))
    assert stat.S_IMODE(file.bind_path.parent.stat().st_mode) == 0o700
    assert not (tmp_path / "s.sock").exists()


def test_a_group_may_be_a_number(tmp_path: Path, listeners: list[Listener]) -> None:
    published(file_at(tmp_path / "s", group=str(os.getgid())), listeners)
    assert (tmp_path / "s").stat().st_gid == os.getgid()


def test_an_unknown_group_stops_the_start_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="group 'nobody-has-this' does not exist"):
        file_at(tmp_path / "run" / "s", group="nobody-has-this").prepare()
    assert not (tmp_path / "run").exists()


def test_a_socket_left_behind_by_a_killed_process_is_replaced(
    tmp_path: Path, listeners: list[Listener]
) -> None:
    path = tmp_path / "s"
    Listener(path).close()
    (tmp_path / ".s.new").mkdir()
    Listener(tmp_path / ".s.new" / "s").close()
    published(file_at(path), listeners)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(path))
    assert os.listdir(tmp_path) == ["s"]


def test_a_socket_on_which_somebody_answers_is_refused(
    tmp_path: Path, listeners: list[Listener]
) -> None:
    path = tmp_path / "s"
    listeners.append(Listener(path))
    inode = path.stat().st_ino
    second = file_at(path)
    with pytest.raises(AlreadyExistsError, match="another server answers"):
        second.prepare()
    second.withdraw()
    assert path.stat().st_ino == inode


def test_a_file_that_is_no_socket_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="is not a socket"):
        file_at(path).prepare()
    assert path.read_text() == "precious"


def test_withdraw_removes_our_socket(tmp_path: Path, listeners: list[Listener]) -> None:
    file = file_at(tmp_path / "s")
    published(file, listeners)
    file.withdraw()
    assert not os.listdir(tmp_path)
    file.withdraw()


def test_withdraw_leaves_the_socket_of_another_server(
    tmp_path: Path, listeners: list[Listener]
) -> None:
    first, second = file_at(tmp_path / "s"), file_at(tmp_path / "s")
    published(first, listeners)
    listeners[0].close()
    published(second, listeners)
    first.withdraw()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(tmp_path / "s"))


def test_withdraw_takes_away_what_was_only_prepared(tmp_path: Path) -> None:
    file = file_at(tmp_path / "s")
    file.prepare()
    file.withdraw()
    assert not os.listdir(tmp_path)


def test_a_path_too_long_for_a_socket_is_refused_with_its_bound(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{MAX_PATH_BYTES} bytes"):
        file_at(tmp_path / ("x" * MAX_PATH_BYTES)).prepare()
