from __future__ import annotations

import json

import pytest

from cri_shim.__main__ import main
from cri_shim.cli import check
from cri_shim.cli.checks.row import Node, Row, failed, ok, warning
from cri_shim.config import Config

OK = ok("kernel", "Linux 6.1")
WARNING = warning("runtime kata", "not found", "install it")
FAILED = failed("conmon", "conmon not found", "apt-get install conmon")


@pytest.fixture(autouse=True)
def default_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "load_config", lambda _file, _overrides: Config())


def rows_are(monkeypatch: pytest.MonkeyPatch, *rows: Row) -> None:
    async def collect(_config: Config, _node: Node | None = None) -> list[Row]:
        return list(rows)

    monkeypatch.setattr(check, "collect", collect)


@pytest.mark.parametrize(
    ("rows", "code", "verdict"),
    [
        ((OK,), 0, "this node can run cri-shim: 1 ok, 0 warning, 0 failed"),
        ((OK, WARNING), 0, "this node can run cri-shim, with the limits above: 1 ok, 1 warning, 0"),
        ((OK, WARNING, FAILED), 1, "this node cannot run cri-shim yet: 1 ok, 1 warning, 1 failed"),
    ],
)
def test_only_a_failed_row_makes_the_exit_code_1(
    rows: tuple[Row, ...],
    code: int,
    verdict: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows_are(monkeypatch, *rows)
    assert main(["check"]) == code
    assert capsys.readouterr().out.splitlines()[-1].startswith(verdict)


def test_json_has_every_row_and_the_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows_are(monkeypatch, OK, FAILED)
    assert main(["check", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "ok": False,
        "rows": [
            {"name": "kernel", "level": "ok", "detail": "Linux 6.1", "remedy": ""},
            {
                "name": "conmon",
                "level": "failed",
                "detail": "conmon not found",
                "remedy": "apt-get install conmon",
            },
        ],
    }


def test_the_table_is_aligned_with_the_remedy_below() -> None:
    assert check.format_rows([OK, FAILED], colour=False) == [
        "ok       kernel  Linux 6.1",
        "failed   conmon  conmon not found",
        "                 -> apt-get install conmon",
    ]


def test_the_table_wraps_to_a_terminal_and_colours_only_the_level() -> None:
    row = warning("x", "word " * 20, "remedy")
    lines = check.format_rows([row], colour=True, width=60)
    assert lines[0].startswith("\x1b[33mwarning\x1b[0m  x  word")
    assert all(len(line.replace("\x1b[33m", "").replace("\x1b[0m", "")) <= 60 for line in lines)


def test_what_programs_say_cannot_command_the_terminal() -> None:
    row = ok("x", "evil \x1b[31m version\nnext")
    assert check.format_rows([row], colour=False) == ["ok       x  evil �[31m version next"]
