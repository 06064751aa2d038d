from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from cri_shim.errors import ConfigError, UnavailableError
from cri_shim.oci.hook_files import HookFiles, check_programs, untrusted_programs

if TYPE_CHECKING:
    from pathlib import Path


def write(file: Path, program: str, **changes: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    document = {
        "version": "1.0.0",
        "hook": {"path": program},
        "when": {"always": True},
        "stages": ["prestart"],
    }
    file.write_text(json.dumps({**document, **changes}))


def programs(files: HookFiles) -> list[str]:
    return [hook.hook.path for hook in files.current()]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return program


def test_hooks_run_by_name_over_all_directories_and_later_ones_override(tmp_path: Path) -> None:
    low, high = tmp_path / "low", tmp_path / "high"
    write(low / "20-b.json", "/low/b")
    write(low / "30-c.json", "/low/c")
    write(high / "10-a.json", "/high/a")
    write(high / "30-c.json", "/high/c")
    files = HookFiles([low, high])
    assert programs(files) == ["/high/a", "/low/b", "/high/c"]
    (high / "30-c.json").write_text("{}")
    assert programs(files) == ["/high/a", "/low/b"], "the override failed: neither runs"
    assert "30-c.json" in files.files.problems()[0]


def test_the_nodes_list_comes_first(tmp_path: Path, program: Path) -> None:
    listed = tmp_path / "default.json"
    listed.write_text(json.dumps({"prestart": [{"path": str(program)}]}))
    write(tmp_path / "d" / "00.json", "/first")
    assert programs(HookFiles([tmp_path / "d"], listed)) == [str(program), "/first"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ("{", "truncated"),
        ('{"prestart": [{"path": "relative"}]}', "absolute"),
        ('{"prestart": [{"path": "/nonexistent"}]}', "program is missing"),
    ],
)
def test_list_that_cannot_be_used_keeps_the_daemon_from_starting(
    tmp_path: Path, text: str | None, words: str
) -> None:
    listed = tmp_path / "default.json"
    if text is not None:
        listed.write_text(text)
    with pytest.raises(ConfigError, match=words):
        HookFiles([], listed)


def spec(program: Path, stage: str = "prestart") -> dict[str, Any]:
    return {"hooks": {stage: [{"path": str(program)}]}}


def test_program_must_be_roots_own_and_executable(program: Path, tmp_path: Path) -> None:
    check_programs(spec(program))
    check_programs({})
    program.chmod(0o757)
    with pytest.raises(UnavailableError, match=f"{program}: writable by users other than root"):
        check_programs(spec(program))
    program.chmod(0o644)
    with pytest.raises(UnavailableError, match="not an executable file"):
        check_programs(spec(program))
    with pytest.raises(UnavailableError, match="not an executable file"):
        check_programs(spec(tmp_path))
    with pytest.raises(UnavailableError, match="missing"):
        check_programs(spec(tmp_path / "none"))


def test_program_of_somebody_else_is_refused(program: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    os.chown(program, 1000, 1000)
    with pytest.raises(UnavailableError, match="owned by user 1000"):
        check_programs(spec(program))


def test_program_of_the_container_is_the_containers_business(tmp_path: Path) -> None:
    check_programs(spec(tmp_path / "none", "startContainer"))
    write(tmp_path / "d" / "00.json", "/nonexistent", stages=["startContainer"])
    write(tmp_path / "d" / "01.json", "/nonexistent")
    files = HookFiles([tmp_path / "d"]).current()
    assert untrusted_programs(files[:1]) == []
    assert len(untrusted_programs(files)) == 1
