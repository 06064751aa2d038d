"""Floors of coverage: what counts for which package, what fails, and that none is lowered."""

from __future__ import annotations

from tests.coverage_floor import ROOT, percentages, raised, read_floors, sunken

NOTHING = {"covered_lines": 0, "num_statements": 0, "covered_branches": 0, "num_branches": 0}
HALF = {"covered_lines": 5, "num_statements": 8, "covered_branches": 1, "num_branches": 4}
WHOLE = {"covered_lines": 8, "num_statements": 8, "covered_branches": 4, "num_branches": 4}
FILES = {
    "cri_shim/a/__init__.py": NOTHING,
    "cri_shim/a/b.py": HALF,
    "cri_shim/a/c/d.py": WHOLE,
    "cri_shim/e.py": WHOLE,
}


def test_lines_and_branches_count_together_for_the_innermost_package() -> None:
    assert percentages(FILES, ["cri_shim/a", "cri_shim/a/c"]) == {
        "cri_shim/a": 50.0,
        "cri_shim/a/c": 100.0,
    }
    assert percentages(FILES, ["cri_shim/a"]) == {"cri_shim/a": 75.0}
    assert percentages(FILES, ["cri_shim/e"]) == {"cri_shim/e": 100.0}
    assert percentages(FILES, ["cri_shim/a/b"]) == {"cri_shim/a/b": 50.0}


def test_a_percentage_is_never_rounded_up() -> None:
    nearly = {**WHOLE, "num_statements": 10_000, "covered_lines": 9_999}
    assert percentages({"cri_shim/a/b.py": nearly}, ["cri_shim/a"]) == {"cri_shim/a": 99.9}


def test_what_sank_and_what_has_no_floor_fails() -> None:
    assert sunken({"a": 90.0, "b": 80.1}, {"a": 90.0, "b": 80.0}) == []
    assert sunken({"a": 89.9, "new": 100.0}, {"a": 90.0, "gone": 1.0}) == [
        "new: has no floor",
        "a: 89.9 %, and its floor is 90.0 %",
        "gone: has a floor, and was not measured",
    ]


def test_a_floor_rises_and_never_sinks_and_below_the_whole_keeps_its_distance() -> None:
    measured = {"a": 91.0, "b": 80.4, "new": 5.0, "whole": 100.0}
    assert raised(measured, {"a": 90.0, "b": 80.0, "gone": 7.0}) == {
        "a": 90.5,
        "b": 80.0,
        "new": 4.5,
        "whole": 100.0,
    }


def test_every_module_with_a_floor_of_its_own_is_there() -> None:
    for name in read_floors():
        assert (ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file(), name
