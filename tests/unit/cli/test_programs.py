from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cri_shim.cli import programs
from cri_shim.cli.programs import Answer, ask
from cri_shim.config.values import EnvName
from cri_shim.host.process import Reaper

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.unit.cli.conftest import Program


def answer_of(name: str, env: dict[EnvName, str] | None = None) -> Answer:
    async def run() -> Answer:
        reaper = Reaper()
        reaper.open()
        try:
            return await ask(reaper, name, env=env)
        finally:
            reaper.close()

    return asyncio.run(run())


def test_the_first_line_and_its_number_are_the_version(program: Program) -> None:
    path = program("runc", "echo 'runc version 1.1.5+ds1'; echo 'commit: x'")
    answer = answer_of("runc")
    assert answer.path == str(path)
    assert answer.first_line == "runc version 1.1.5+ds1"
    assert answer.version == (1, 1, 5)
    assert answer.problem == ""


def test_a_version_on_standard_error_counts(program: Program) -> None:
    program("old", "echo 'old 2.0' >&2")
    assert answer_of("old").version == (2, 0, 0)


def test_a_program_that_is_missing_is_an_answer(program: Program) -> None:
    assert answer_of("nothing") == Answer(None, "", "nothing not found")


def test_a_file_that_cannot_be_run_is_told_apart(program: Program) -> None:
    path = program("x", "")
    path.chmod(0o644)
    assert answer_of(str(path)).problem == f"{path} is not executable"


def test_a_failure_comes_with_the_programs_last_words(program: Program) -> None:
    path = program("bad", "echo first >&2; echo 'no kernel support' >&2; exit 3")
    assert answer_of("bad").problem == f"{path} exited with status 3: no kernel support"


def test_a_program_that_hangs_is_killed(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "TIMEOUT_S", 0.2)
    program("slow", "exec /bin/sleep 60")
    assert "did not finish within 0.2 s" in answer_of("slow").problem


def test_a_file_that_is_no_program_is_an_answer(program: Program, tmp_path: Path) -> None:
    path = program("text", "")
    path.write_bytes(b"\x00\x01")
    assert answer_of("text").problem != ""


def test_the_handlers_environment_is_passed(program: Program) -> None:
    program("env", 'echo "$KEY 1.0"')
    assert answer_of("env", {EnvName("KEY"): "value"}).first_line == "value 1.0"
