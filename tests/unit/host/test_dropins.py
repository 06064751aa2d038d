from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import structlog

from cri_shim.background import Background
from cri_shim.errors import ConfigError
from cri_shim.host import dropins
from cri_shim.host.dropins import DropIns, read_owned
from tests.fakes.clock import until

if TYPE_CHECKING:
    from pathlib import Path

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


def parse(path: Path, data: bytes) -> str:
    if data == b"bad":
        raise ConfigError(f"{path}: is bad")
    return data.decode()


def of(*directories: Path) -> DropIns[str]:
    return DropIns("things", directories, (".json", ".yaml"), parse, max_bytes=100)


def values(files: DropIns[str]) -> list[tuple[str, int, str | None]]:
    return [(file.path.name, file.priority, file.value) for file in files.current()]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "one"
    directory.mkdir()
    return directory


def test_files_come_by_directory_and_name(directory: Path, tmp_path: Path) -> None:
    later = tmp_path / "two"
    later.mkdir()
    for name in ("b.json", "a.yaml", "c.txt", ".hidden.json", "b.json.tmp"):
        (directory / name).write_text(name)
    (directory / "d.json").mkdir()
    (later / "a.json").write_text("later")
    assert values(of(directory, tmp_path / "missing", later)) == [
        ("a.yaml", 0, "a.yaml"),
        ("b.json", 0, "b.json"),
        ("a.json", 2, "later"),
    ]


def test_each_question_sees_what_is_there_now(directory: Path) -> None:
    files = of(directory)
    assert values(files) == []
    (directory / "a.json").write_text("1")
    assert values(files) == [("a.json", 0, "1")]
    (directory / "a.json").write_text("two")
    assert values(files) == [("a.json", 0, "two")]
    (directory / "a.json").unlink()
    assert values(files) == []


def test_unchanged_file_is_read_once(directory: Path) -> None:
    reads: list[Path] = []
    files: DropIns[None] = DropIns(
        "things", [directory], (".json",), lambda path, _data: reads.append(path), max_bytes=9
    )
    (directory / "a.json").touch()
    files.current()
    files.current()
    assert len(reads) == 1


def test_bad_file_counts_as_missing_and_is_said_once(directory: Path) -> None:
    (directory / "a.json").write_text("bad")
    (directory / "b.json").write_text("good")
    (directory / "c.json").write_text("x" * 101)
    files = of(directory)
    with structlog.testing.capture_logs() as logged:
        assert values(files) == [("a.json", 0, None), ("b.json", 0, "good"), ("c.json", 0, None)]
        assert [p.removeprefix(str(directory)) for p in files.problems()] == [
            "/a.json: is bad",
            "/c.json has 101 bytes; the limit is 100",
        ]
    assert len([entry for entry in logged if entry["log_level"] == "warning"]) == 2


def test_directory_of_thousands_is_no_configuration(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dropins, "MAX_FILES", 1)
    (directory / "a.json").touch()
    (directory / "b.json").touch()
    files = of(directory)
    assert values(files) == []
    assert "more than 1 files" in files.problems()[0]


def test_what_is_no_file_is_not_opened(directory: Path) -> None:
    os.mkfifo(directory / "pipe.json")
    (directory / "null.json").symlink_to("/dev/null")
    (directory / "gone.json").symlink_to(directory / "nowhere")
    assert of(directory).problems() == [
        f"{directory}/null.json is not a regular file",
        f"{directory}/pipe.json is not a regular file",
    ]


@pytest.mark.parametrize("mode", [0o602, 0o666])
def test_file_that_anybody_may_write_is_refused(directory: Path, mode: int) -> None:
    file = directory / "a.json"
    file.touch()
    file.chmod(mode)
    with pytest.raises(ConfigError, match="writable by users other than root"):
        read_owned(file, 10)
    file.chmod(0o644)
    assert read_owned(file, 10) == b""


@NEEDS_ROOT
def test_file_of_somebody_else_is_refused(directory: Path) -> None:
    file = directory / "a.json"
    file.touch()
    os.chown(file, 1000, 0)
    with pytest.raises(ConfigError, match="owned by user 1000"):
        read_owned(file, 10)
    os.chown(file, 0, 1000)
    file.chmod(0o664)
    with pytest.raises(ConfigError, match="writable by users other than root"):
        read_owned(file, 10)
    os.chown(file, 0, 0)
    assert read_owned(file, 10) == b"", "root's group is root"


@pytest.mark.asyncio
async def test_directories_are_followed_also_those_made_later(
    directory: Path, tmp_path: Path
) -> None:
    seen: list[str] = []
    late = tmp_path / "late"
    files: DropIns[None] = DropIns(
        "things",
        [directory, late],
        (".json",),
        lambda path, data: seen.append(f"{path.name} {data.decode()}"),
        max_bytes=9,
    )
    background = Background()
    files.watch(background)
    (directory / "a.json").write_text("1")
    await until(lambda: "a.json 1" in seen)
    late.mkdir()
    (late / "b.json").write_text("2")
    files.follow()
    await until(lambda: "b.json 2" in seen)
    (late / "c.json").write_text("3")
    await until(lambda: "c.json 3" in seen)
    files.close()
    files.close()
    await background.close(5)
