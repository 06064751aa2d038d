"""Branch coverage of the unit tests against a floor, one for each package, that only rises.

    coverage run -m pytest
    python -m tests.coverage_floor [--accept]

Rules:
- `coverage_floor.toml` has the floors: of every package, and of the pure modules (no clock, no files, no tasks), which
  nothing keeps from being covered nearly whole. A module with a floor of its own does not count for its package.
- Lines and branches count together. A package below its floor fails; `--accept` raises floors, and lowers none.
- A package without a floor fails as well, so that a new one gets its own.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import coverage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ROOT = Path(__file__).parents[1]
FLOORS = ROOT / "tests/coverage_floor.toml"
DISTANCE = 0.5
HEADER = """# Percent of lines and branches that the unit tests reach, at least: see coverage_floor.py.
# Its `--accept` raises what has risen. Nothing is lowered but by hand, with a reason in the commit.
"""


def read_floors() -> dict[str, float]:
    """By package or module, without `.py`."""
    floors: dict[str, float] = tomllib.loads(FLOORS.read_text())
    return floors


def write_floors(floors: Mapping[str, float]) -> None:
    """As `read_floors` reads them."""
    rows = (f'"{name}" = {floor:.1f}\n' for name, floor in sorted(floors.items()))
    FLOORS.write_text(HEADER + "\n" + "".join(rows))


def package_of(file: str) -> str:
    """The folder that a module lies in."""
    return str(Path(file).parent)


def percentages(files: Mapping[str, Mapping[str, int]], names: Iterable[str]) -> dict[str, float]:
    """Of each package or module with anything to reach, rounded down to a tenth."""
    reached: dict[str, int] = {}
    possible: dict[str, int] = {}
    names = set(names)
    for file, counts in files.items():
        stem = file.removesuffix(".py")
        owners = {stem, package_of(file), *map(str, Path(file).parents)} & names
        # The innermost name that holds it.
        owner = max(owners, key=len, default=None)
        if owner is None:
            continue
        reached[owner] = (
            reached.get(owner, 0) + counts["covered_lines"] + counts["covered_branches"]
        )
        possible[owner] = possible.get(owner, 0) + counts["num_statements"] + counts["num_branches"]
    return {
        name: math.floor(1000 * reached[name] / total) / 10
        for name, total in possible.items()
        if total
    }


def measured_files() -> dict[str, dict[str, int]]:
    """The counts of each file of the package, from the data of the last `coverage run`."""
    data = coverage.Coverage()
    data.load()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        data.json_report(outfile=file.name)
        report = json.loads(Path(file.name).read_bytes())
    return {name: entry["summary"] for name, entry in report["files"].items()}


def sunken(measured: Mapping[str, float], floors: Mapping[str, float]) -> list[str]:
    """What is wrong, a line each."""
    wrong = [f"{name}: has no floor" for name in sorted(measured.keys() - floors.keys())]
    for name, floor in sorted(floors.items()):
        if name not in measured:
            wrong.append(f"{name}: has a floor, and was not measured")
        elif measured[name] < floor:
            wrong.append(f"{name}: {measured[name]:.1f} %, and its floor is {floor:.1f} %")
    return wrong


def raised(measured: Mapping[str, float], floors: Mapping[str, float]) -> dict[str, float]:
    """The floors of what was measured, none lower than it was.

    What depends on time reaches a branch more or less from run to run: below the whole, a floor keeps a distance.
    """
    return {
        name: max(percent - (DISTANCE if percent < 100 else 0), floors.get(name, 0.0))
        for name, percent in measured.items()
    }


def check(*, accept: bool) -> int:
    """Compare the last `coverage run`; 1 for what has sunk."""
    floors = read_floors()
    files = measured_files()
    measured = percentages(files, floors.keys() | set(map(package_of, files)))
    if accept:
        floors = raised(measured, floors)
        write_floors(floors)
    for name, percent in sorted(measured.items()):
        print(f"{name:48} {percent:6.1f} %  floor {floors.get(name, 0.0):.1f} %")
    wrong = sunken(measured, floors)
    for line in wrong:
        print(f"FAILED {line}")
    return 1 if wrong else 0


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.coverage_floor")
    parser.add_argument("--accept", action="store_true", help="raise floors to what was measured")
    return check(accept=parser.parse_args().accept)


if __name__ == "__main__":
    sys.exit(main())
