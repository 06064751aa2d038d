from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import AlreadyExistsError, PermissionRefusedError, UnavailableError
from cri_shim.host.locks import FileLock

if TYPE_CHECKING:
    from pathlib import Path


def test_the_second_one_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "run" / "daemon.lock"
    with FileLock(path, protects="root /x"), pytest.raises(AlreadyExistsError) as failure:
        FileLock(path, protects="root /x").acquire()
    text = str(failure.value)
    assert f"process {os.getpid()}" in text
    assert "root /x" in text
    assert str(path) in text


def test_a_lock_given_back_can_be_taken_again(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "l", protects="x")
    for _ in range(2):
        with lock:
            assert lock.is_held
        assert not lock.is_held
    lock.release()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / "l"
    script = (
        "import sys, pathlib\n"
        "from cri_shim.host.locks import FileLock\n"
        "FileLock(pathlib.Path(sys.argv[1]), protects='x').acquire()\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(AlreadyExistsError, match=f"process {holder.pid}"):
            FileLock(path, protects="x").acquire()
        holder.kill()
        holder.wait()
    with FileLock(path, protects="x"):
        assert path.read_text() == f"{os.getpid()}\n"


def test_a_child_that_execs_does_not_inherit_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "l"
    lock = FileLock(path, protects="x")
    lock.acquire()
    child = subprocess.Popen(["sleep", "30"], close_fds=False)
    try:
        lock.release()
        with FileLock(path, protects="x"):
            pass
    finally:
        child.kill()
        child.wait()


def test_a_lock_file_that_was_replaced_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with FileLock(path, protects="x"):
        path.unlink()
        with FileLock(path, protects="x") as second:
            assert second.is_held


def test_a_link_in_place_of_the_lock_file_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("data")
    (tmp_path / "l").symlink_to(target)
    with pytest.raises((UnavailableError, PermissionRefusedError), match="cannot lock x"):
        FileLock(tmp_path / "l", protects="x").acquire()
    assert target.read_text() == "data"


def test_an_object_that_holds_the_lock_refuses_to_take_it_twice(tmp_path: Path) -> None:
    with FileLock(tmp_path / "l", protects="x") as lock, pytest.raises(AlreadyExistsError):
        lock.acquire()
