from __future__ import annotations

import pytest

from cri_shim.cli.parser import Parser, add_config_options, suggest


def test_overrides_are_collected_in_order() -> None:
    parser = Parser("x")
    add_config_options(parser)
    args = parser.parse_args(["--set", "a.b=1", "--set", "c=x=y"])
    assert args.set == ["a.b=1", "c=x=y"]
    assert args.config is None


def test_abbreviations_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser("x")
    add_config_options(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--conf", "f"])
    assert capsys.readouterr().err == "x: unrecognized arguments: --conf f; see 'x --help'\n"


def test_a_near_miss_is_named() -> None:
    assert suggest("serv", ["serve", "check"]) == "did you mean 'serve'?"
    assert suggest("zzz", ["serve", "check"]) == "known are: serve, check"
