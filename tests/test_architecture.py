"""The project's own rules, as tests: layers, documentation, size, and tests that mirror the source.

That the generated stubs are fresh is a test of theirs, in `tests/unit/api`.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cri_shim"
MAX_LINES = 400
LENGTH_REASON = re.compile(r"\b(long|length)\b")
"""How a module's docstring says why it is past the limit: "as long as the list of keys"."""

UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
DEVELOPER_PATHS = re.compile(r"(?<![\w.])/work/|/opt/venv")
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
TEXT_SUFFIXES = {
    *(".py", ".pyi", ".sh", ".md", ".toml", ".txt", ".proto", ".yaml", ".yml"),
    *(".service", ".conflist", ""),
}
UNIT_DIRS_WITHOUT_A_PACKAGE = {"api", "harness"}
"""Unit tests of what stands elsewhere: the protos in api/, the harness in tests/."""

TESTS_OF_A_WHOLE_PACKAGE = {"test_golden.py", "test_arbitrary.py"}
"""Recorded outputs, and inputs that nobody thought of."""


def modules() -> list[Path]:
    return sorted(
        path for path in PACKAGE.rglob("*.py") if "_pb" not in path.relative_to(PACKAGE).parts
    )


def tracked_files() -> list[Path]:
    """Our own text files: what a commit would take, in a checkout and in an unpacked archive alike."""
    ignored = {".coverage", ".git", ".venv", "__pycache__", "_pb", "build", "dist", ".hypothesis"}
    return sorted(
        path
        for path in ROOT.rglob("*")
        if path.is_file()
        and path != Path(__file__)
        and path.suffix in TEXT_SUFFIXES
        and not any(part in ignored or part.endswith(("_cache", ".egg-info")) for part in path.relative_to(ROOT).parts)
    )  # fmt: skip


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_imports_follow_the_layers() -> None:
    lint = Path(sysconfig.get_path("scripts")) / "lint-imports"
    done = subprocess.run(
        [str(lint), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_opens_with_its_responsibility() -> None:
    silent = [named(m) for m in modules() if not ast.get_docstring(ast.parse(m.read_text()))]
    assert not silent, f"no docstring: {', '.join(silent)}"


def test_every_module_can_be_read_in_one_sitting() -> None:
    long = []
    for module in modules():
        text = module.read_text()
        lines = text.count("\n")
        reason = LENGTH_REASON.search(ast.get_docstring(ast.parse(text)) or "")
        if lines > MAX_LINES and not reason:
            long.append(f"{named(module)} ({lines} lines)")
    assert not long, f"split, or say in the docstring why it is so long: {', '.join(long)}"


def test_every_module_has_a_name_that_says_something() -> None:
    vague = [
        named(module)
        for module in modules()
        if VAGUE_NAMES & {part.removesuffix(".py") for part in module.relative_to(PACKAGE).parts}
    ]
    assert not vague, f"a noun is missing: {', '.join(vague)}"


def test_unit_tests_stand_where_their_modules_do() -> None:
    """`tests/unit/a/test_b.py` tests `cri_shim/a/b.py` or the package `cri_shim/a/b`; `test_b_more.py` too."""
    tests = ROOT / "tests/unit"
    astray = []
    for test in sorted(tests.rglob("test_*.py")):
        inside = test.relative_to(tests)
        if inside.parts[0] in UNIT_DIRS_WITHOUT_A_PACKAGE or test.name in TESTS_OF_A_WHOLE_PACKAGE:
            continue
        place = PACKAGE / inside.parent
        words = test.stem.removeprefix("test_").split("_")
        names = ["_".join(words[:count]) for count in range(len(words), 0, -1)]
        names += [f"__{name}__" for name in names]
        if not any((place / f"{n}.py").exists() or (place / n).is_dir() for n in names):
            astray.append(f"{named(test)} tests no module of {named(place)}")
    assert not astray, "\n".join(astray)


@pytest.mark.parametrize("kind", [UNFINISHED, DEVELOPER_PATHS], ids=["unfinished", "paths"])
def test_nothing_unfinished_and_no_developers_machine_is_in_the_text(kind: re.Pattern[str]) -> None:
    found = [
        f"{named(path)}:{number}: {line.strip()[:100]}"
        for path in tracked_files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if kind.search(line)
    ]
    assert not found, "\n".join(found)


def test_shell_scripts_can_be_parsed() -> None:
    scripts = [
        path
        for path in tracked_files()
        if path.suffix == ".sh" or path.parts[-2:] == (".ci", "run")
    ]
    done = [
        subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
        for path in scripts
    ]
    assert scripts
    assert not any(one.returncode for one in done), "".join(one.stderr for one in done)


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_every_pinned_version_is_the_installed_one() -> None:
    """What the tests ran with is what constraints.txt promises."""
    wrong = [
        f"{name}: {metadata.version(name)} is installed, {version} is pinned"
        for name, version in pins().items()
        if metadata.version(name) != version
    ]
    assert not wrong, f"{'; '.join(wrong)} (in {sys.prefix})"


def test_everything_that_is_installed_with_the_package_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    pinned = {canonicalize_name(name) for name in pins()}
    pending = [Requirement(text) for text in wanted]
    seen: set[str] = set()
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        if name in seen:
            continue
        seen.add(name)
        for text in metadata.requires(requirement.name) or ():
            further = Requirement(text)
            extras = ("", *requirement.extras)
            if further.marker is None or any(further.marker.evaluate({"extra": e}) for e in extras):
                pending.append(further)
    assert not seen - pinned, f"not in constraints.txt: {', '.join(sorted(seen - pinned))}"
