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
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cri_shim"
MAX_LINES = 400
MOST_LINES_OF_A_LIST = 550
LENGTH_REASON = re.compile(r"\bas long as the list of ([\w' ]+)\.")
"""How a module's docstring says why it is past the limit: what it lists, one after the other."""
MIN_WORDS = 5
"""Of a responsibility: a name alone is none."""

LONGER_MODULES = {
    "config/model.py": "the configuration keys, each with its type, default and meaning",
    "rpc/runtime_service.py": "the calls of RuntimeService, each a few lines that know of no other",
    "streaming/wire/spdy.py": "the frames of one connection, which share its streams, windows and compression",
}
"""Why each of these is longer; its docstring says so, too."""

MAX_FUNCTION_LINES = 60
"""Without the docstring: a function is read on one screen."""

LONGER_FUNCTIONS = {
    "sandbox/creation.py _make": "the numbered steps of CreateContainer on one rollback, read from top to bottom",
    "sandbox/exec/process.py _start": "one start: who owns its descriptors and its child changes from line to line",
}
"""Why each of these stays in one piece. Others are split."""

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

TESTED_ELSEWHERE = {
    "parts of one command, which is tested as a whole": {
        "cli/demo_pod.py": "unit/cli/test_demo.py",
        "cli/demo_proofs.py": "unit/cli/test_demo.py",
        "cli/image_daemon.py": "unit/cli/test_image.py",
        "cli/status_reading.py": "unit/cli/test_status.py",
        "cli/wipe_local.py": "unit/cli/test_wipe.py",
    },
    "a part that nothing else uses: its own tests would be the whole's once more": {
        "daemon/mechanisms.py": "unit/daemon/test_build.py",
        "image/integrity/inspector.py": "unit/image/integrity/test_inspection.py",
        "image/layer_downloads.py": "unit/image/test_pull.py",
        "image/registry/blob.py": "unit/image/registry/test_client.py",
        "image/unpack/members.py": "unit/image/test_archive.py",
        "sandbox/creation.py": "unit/sandbox/test_containers.py",
        "sandbox/exec/process.py": "unit/sandbox/exec/test_sync.py",
        "sandbox/network/details.py": "unit/sandbox/test_details.py",
        "oci/shim/streams_process.py": "unit/oci/shim/test_streams.py",
        "streamer/process.py": "unit/daemon/test_streaming.py",
        "streaming/session.py": "unit/streaming/test_remote_command.py",
        "streaming/target.py": "unit/streaming/test_port_forward.py",
        "streaming/tls.py": "unit/streaming/test_server.py",
    },
    "nothing of it happens without root, or a real program": {
        "host/standin.py": "integration/host/test_standin_real.py",
        "image/unpack/client.py": "integration/image/test_unpacker_shares.py",
        "image/unpack/extract.py": "integration/image/test_layer_real.py",
        "image/unpack/finish.py": "integration/image/test_layer_order_real.py",
        "image/unpack/process_handle.py": "integration/image/test_confinement_real.py",
        "image/unpack/template_process.py": "integration/image/test_confinement_real.py",
        "sandbox/spec/user_namespace.py": "integration/test_user_namespaces.py",
    },
}
"""Modules without a test module of their own: why, and which one tests them."""
TIMED_SLEEPS = {
    "harness/test_clock.py": (
        2,
        "shows that the clock goes at the pace of the real one until it is moved",
    ),
    "sandbox/recovery/test_unfinished.py": (1, "lasts a while of the clock that the test moves"),
    "test_event_loop.py": (
        2,
        "blocks a turn, and waits between two: the loop has to tell these apart",
    ),
}
"""Unit tests that sleep: how often, and why no event can be waited for. A sleep is too short on a busy machine, and
too long on any other, so this table only shrinks."""

DECIDING = (
    *(ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.Match, ast.Try, ast.BoolOp),
    *(ast.comprehension, ast.With, ast.AsyncWith),
)
"""Code of which a test could ask whether it is right. What only declares (types, constants, one call) has none."""


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


def docstring(module: Path) -> str:
    return ast.get_docstring(ast.parse(module.read_text())) or ""


def test_imports_follow_the_layers() -> None:
    lint = Path(sysconfig.get_path("scripts")) / "lint-imports"
    done = subprocess.run(
        [str(lint), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_opens_with_a_responsibility_that_no_other_has() -> None:
    """In a sentence: of several words, not only the module's name, with its end."""
    owners: dict[str, list[str]] = {}
    wrong = []
    for module in modules():
        responsibility = docstring(module).partition("\n\n")[0]
        owners.setdefault(responsibility, []).append(named(module))
        words = {word.lower() for word in re.findall(r"\w+", responsibility)}
        said = words - set(module.stem.split("_"))
        if len(said) < MIN_WORDS or not responsibility.endswith((".", ":")):
            wrong.append(f"{named(module)}: {responsibility!r}")
    assert not wrong, "no responsibility:\n" + "\n".join(wrong)
    shared = [who for who in owners.values() if len(who) > 1]
    assert not shared, f"one responsibility, several modules: {shared}"


def test_every_module_can_be_read_in_one_sitting() -> None:
    """Only a list, of which each entry is read alone, may be longer; and says of what."""
    long = []
    for module in modules():
        lines = module.read_text().count("\n")
        argued = str(module.relative_to(PACKAGE)) in LONGER_MODULES
        is_a_list = LENGTH_REASON.search(docstring(module).replace("\n", " ")) is not None
        if lines > (MOST_LINES_OF_A_LIST if is_a_list and argued else MAX_LINES):
            long.append(f"{named(module)} ({lines} lines)")
        if (is_a_list or argued) and lines <= MAX_LINES:
            long.append(f"{named(module)}: excuses a length that it has not ({lines} lines)")
    assert not long, f"split, or say in the docstring what is listed: {', '.join(long)}"


def test_every_function_fits_a_screen() -> None:
    long = {}
    for module in modules():
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                words = node.body[0] if ast.get_docstring(node) else None
                said = words.end_lineno - words.lineno + 1 if words and words.end_lineno else 0
                lines = (node.end_lineno or 0) - node.lineno + 1 - said
                if lines > MAX_FUNCTION_LINES:
                    long[f"{module.relative_to(PACKAGE)} {node.name}"] = lines
    unargued = {name: lines for name, lines in long.items() if name not in LONGER_FUNCTIONS}
    assert not unargued, f"split, or argue in the table: {unargued}"


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


def decides(module: Path) -> bool:
    """Whether a test could ask anything; `if TYPE_CHECKING` and its like are no decision."""
    tree = ast.parse(module.read_text())
    tree.body = [statement for statement in tree.body if not isinstance(statement, ast.If)]
    return any(isinstance(node, DECIDING) for node in ast.walk(tree))


def has_tests_of_its_own(module: Path) -> bool:
    inside = module.relative_to(PACKAGE)
    name = f"test_{module.stem.strip('_')}"
    place = ROOT / "tests/unit" / inside.parent
    return (place / f"{name}.py").exists() or any(place.glob(f"{name}_*.py"))


def test_every_module_that_decides_anything_has_its_unit_tests() -> None:
    """`cri_shim/a/b.py` is tested by `tests/unit/a/test_b.py`, or by what `TESTED_ELSEWHERE` argues."""
    elsewhere = {name: test for rows in TESTED_ELSEWHERE.values() for name, test in rows.items()}
    wrong = [
        f"{test} is not there"
        for test in elsewhere.values()
        if not (ROOT / "tests" / test).is_file()
    ]
    known = {str(module.relative_to(PACKAGE)) for module in modules()}
    wrong += [f"{name} is not there to be tested elsewhere" for name in elsewhere.keys() - known]
    for module in modules():
        name = str(module.relative_to(PACKAGE))
        needs = decides(module) and module.name != "__init__.py"
        if needs and not has_tests_of_its_own(module) and name not in elsewhere:
            wrong.append(f"{name} has no unit tests")
        if name in elsewhere and (not needs or has_tests_of_its_own(module)):
            wrong.append(f"{name} needs no row in the table")
    assert not wrong, "\n".join(wrong)


def nodes_of_unit_tests() -> Iterator[tuple[str, ast.AST]]:
    tests = ROOT / "tests/unit"
    for test in sorted(tests.rglob("*.py")):
        for node in ast.walk(ast.parse(test.read_text())):
            yield str(test.relative_to(tests)), node


def test_unit_tests_wait_for_events_and_not_for_a_time() -> None:
    """`sleep(0)` gives way to others and takes none; the clock's own `sleep` takes none either."""
    sleeps = Counter(
        name
        for name, node in nodes_of_unit_tests()
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in {"time.sleep", "asyncio.sleep"}
        and ast.unparse(node.args[0]) != "0"
    )
    assert sleeps == {name: count for name, (count, _) in TIMED_SLEEPS.items()}


def test_unit_tests_look_at_no_private_member() -> None:
    """A test that does fails with each change inside, and passes where the behaviour is wrong."""
    looks = [
        f"tests/unit/{name}:{node.lineno}: {ast.unparse(node)}"
        for name, node in nodes_of_unit_tests()
        if isinstance(node, ast.Attribute)
        and re.match(r"_[^_]", node.attr)
        and ast.unparse(node.value) not in {"self", "cls", "os"}
    ]
    assert not looks, "have the class say it in public, or look from outside:\n" + "\n".join(looks)


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
