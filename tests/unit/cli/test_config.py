from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.__main__ import main
from cri_shim.cli import config as command
from cri_shim.config import Config, load_config

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_default_prints_a_file_that_means_the_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "default"]) == 0
    file = tmp_path / "config.yaml"
    file.write_text(capsys.readouterr().out)
    assert load_config(file) == Config()


def test_show_prints_what_is_in_effect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("log: {level: debug}")
    assert main(["config", "show", "--config", str(file), "--set", "streaming.port=1"]) == 0
    shown = tmp_path / "shown.yaml"
    shown.write_text(capsys.readouterr().out)
    config = load_config(shown)
    assert (config.log.level, config.streaming.port) == ("debug", 1)


def test_check_says_ok(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("log: {level: debug}")
    assert main(["config", "check", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: ok\n"


def test_check_without_a_file_says_that_the_defaults_apply(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "DEFAULT_FILE", tmp_path / "none.yaml")
    assert main(["config", "check"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/none.yaml: does not exist, the defaults apply\n"


def test_check_of_a_file_that_is_missing_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "check", str(tmp_path / "x")]) == 1
    assert capsys.readouterr().err == f"{tmp_path}/x: no such file\n"
