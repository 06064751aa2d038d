from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import pytest

from cri_shim.cli.checks import cgroups, runtimes
from cri_shim.cli.checks.row import Level, Node, Row
from cri_shim.config import load_config
from cri_shim.host.process import Reaper
from tests.unit.cli.checks.trees import hybrid, plant

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from cri_shim.config.model import RuntimeSettings
    from tests.unit.cli.conftest import Program

T = TypeVar("T")


def with_reaper(function: Callable[[Reaper], Awaitable[T]]) -> T:
    async def run() -> T:
        reaper = Reaper()
        reaper.open()
        try:
            return await function(reaper)
        finally:
            reaper.close()

    return asyncio.run(run())


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return plant(tmp_path / "node", {"/etc/os-release": "ID=debian"})


def settings(tmp_path: Path, *overrides: str) -> RuntimeSettings:
    return load_config(default_file=tmp_path / "none", overrides=overrides).runtime


def rows(node: Node, runtime: RuntimeSettings) -> dict[str, Row]:
    layout = cgroups.read_layout(node)
    found = with_reaper(lambda reaper: runtimes.runtime_handlers(node, reaper, runtime, layout))
    return {row.name: row for row in found}


def test_only_the_default_handlers_absence_is_a_failure(
    program: Program, node: Node, tmp_path: Path
) -> None:
    found = rows(node, settings(tmp_path))
    runc, kata = found["runtime runc"], found["runtime kata"]
    assert (runc.level, runc.detail) == (Level.FAILED, "runc not found; it is the default handler")
    assert runc.remedy == "apt-get install runc, or set runtime.handlers.runc.path"
    assert kata.level is Level.WARNING
    assert kata.remedy.startswith("install it from https://katacontainers.io, or set")
    assert kata.remedy.endswith("remove the handler with runtime.handlers.kata: null")


def test_a_current_runtime_is_ok(program: Program, node: Node, tmp_path: Path) -> None:
    path = program("runc", "echo 'runc version 1.3.3'")
    row = rows(node, settings(tmp_path))["runtime runc"]
    assert (row.level, row.detail) == (Level.OK, f"runc version 1.3.3 ({path}), the default")


def test_an_old_runtime_is_a_warning_and_never_a_refusal(
    program: Program, node: Node, tmp_path: Path
) -> None:
    program("runc", "echo 'runc version 1.1.5+ds1'")
    row = rows(node, settings(tmp_path))["runtime runc"]
    assert row.level is Level.WARNING
    assert "CVE-2024-21626" in row.detail
    assert "backported" in row.remedy


@pytest.mark.parametrize(
    ("program_name", "version", "flawed"),
    [
        ("runc", (1, 1, 11), True),
        ("runc", (1, 1, 12), True),
        ("runc", (1, 2, 8), False),
        ("runc", (1, 3, 2), True),
        ("runc", (1, 3, 3), False),
        ("runc", (1, 4, 0), False),
        ("crun", (1, 4, 3), True),
        ("crun", (1, 8, 1), False),
        ("runsc", (0, 0, 0), False),
    ],
)
def test_known_flaws_by_upstream_version(
    program_name: str, version: tuple[int, int, int], flawed: bool
) -> None:
    assert bool(runtimes.known_flaw(program_name, version)) is flawed


@pytest.mark.parametrize(("default", "level"), [("crun", Level.FAILED), ("runc", Level.WARNING)])
def test_crun_on_a_hybrid_node_is_told_before_it_refuses(
    program: Program, tmp_path: Path, default: str, level: Level
) -> None:
    program("crun", "echo 'crun version 1.8.1'")
    node = hybrid(tmp_path / "node", on_v2="hugetlb")
    row = rows(node, settings(tmp_path, f"runtime.default_handler={default}"))["runtime crun"]
    assert row.level is level
    assert "refuses this hybrid cgroup layout: hugetlb" in row.detail


def test_kata_without_kvm_is_told(program: Program, node: Node, tmp_path: Path) -> None:
    program("kata-runtime", "echo 'kata-runtime  : 1.13.0'")
    row = rows(node, settings(tmp_path))["runtime kata"]
    assert (row.level, "/dev/kvm" in row.detail) == (Level.WARNING, True)


SHIM = """[ "$1" = -v ] && printf 'containerd-shim-x-v2:\\n  Version:  1.6.20~ds1\\n  Revision: x\\n'"""


@pytest.mark.parametrize(
    ("name", "lack"),
    [
        ("containerd-shim-kata-v2", "/dev/kvm"),
        ("containerd-shim-runc-v2", "finds no runc"),
        ("containerd-shim-other-v2", "no configuration /etc/gone.toml"),
    ],
)
def test_a_shim_tells_its_version_and_what_it_lacks(
    program: Program, node: Node, tmp_path: Path, name: str, lack: str
) -> None:
    program(name, SHIM)
    config = "/etc/gone.toml" if "other" in name else ""
    handler = f"{{path: {name}, kind: shim, config_path: '{config}'}}"
    row = rows(node, settings(tmp_path, f"runtime.handlers.x={handler}"))["runtime x"]
    assert (row.level, lack in row.detail) == (Level.WARNING, True)
    assert row.detail.startswith("containerd-shim-x-v2 1.6.20~ds1 (")


def test_a_shim_that_lacks_nothing_is_fine(program: Program, node: Node, tmp_path: Path) -> None:
    program("containerd-shim-other-v2", SHIM)
    handler = "{path: containerd-shim-other-v2, kind: shim}"
    row = rows(node, settings(tmp_path, f"runtime.handlers.x={handler}"))["runtime x"]
    assert row.level is Level.OK


def test_conmon_needs_full_attach(program: Program, node: Node) -> None:
    program("conmon", 'case $1 in --help) echo "--attach";; *) echo "conmon version 2.0.1";; esac')
    row = with_reaper(lambda reaper: runtimes.monitor(node, reaper, "conmon"))
    assert (row.level, row.detail) == (
        Level.FAILED,
        "conmon version 2.0.1 has no option --full-attach",
    )
    program(
        "conmon", 'case $1 in --help) echo "--full-attach";; *) echo "conmon version 2.1.6";; esac'
    )
    assert with_reaper(lambda reaper: runtimes.monitor(node, reaper, "conmon")).level is Level.OK


def test_conmon_that_is_missing_comes_with_its_package(program: Program, node: Node) -> None:
    row = with_reaper(lambda reaper: runtimes.monitor(node, reaper, "conmon"))
    assert (row.level, row.remedy) == (
        Level.FAILED,
        "apt-get install conmon, or set runtime.monitor",
    )


def test_the_pause_program_is_not_needed_with_an_image(program: Program, node: Node) -> None:
    missing = with_reaper(lambda reaper: runtimes.pause_program(node, reaper, None))
    assert missing.level is Level.FAILED
    given = with_reaper(lambda reaper: runtimes.pause_program(node, reaper, "pause:3"))
    assert given.level is Level.OK


def test_libarchive_is_really_loaded(node: Node) -> None:
    assert runtimes.libarchive(node).level is Level.OK


@pytest.mark.parametrize(
    ("says", "args", "there", "lacks"),
    [
        ("runsc version release-1", "", (), ""),
        ("runsc version release-1", "--platform=kvm", (), "has no /dev/kvm"),
        ("runsc version release-1", "--platform=kvm", ("/dev/kvm",), ""),
        ("kata-runtime  : 1.13.0", "", ("/dev/kvm", "/dev/log"), ""),
        ("kata-runtime  : 1.13.0", "", (), "has no /dev/kvm; has no /dev/log"),
        (
            "kata-runtime  : 1.13.0",
            "--kata-config,/etc/k.toml",
            ("/dev/kvm", "/dev/log"),
            "has no configuration /etc/k.toml",
        ),
        (
            "kata-runtime  : 1.13.0",
            "--kata-config,/etc/k.toml",
            ("/dev/kvm", "/dev/log", "/etc/k.toml"),
            "",
        ),
        ("kata-runtime  : 3.2.0", "", ("/dev/kvm", "/dev/log"), "no OCI runtime any more"),
    ],
)
def test_a_runtime_with_its_own_kernel_names_what_it_lacks(
    node: Node, tmp_path: Path, says: str, args: str, there: tuple[str, ...], lacks: str
) -> None:
    plant(node.root, dict.fromkeys(there, ""))
    path = tmp_path / "vm-runtime"
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    prefix = "runtime.handlers.vm"
    words = ", ".join(f'"{word}"' for word in args.split(",") if word)
    runtime = settings(
        tmp_path, f"{prefix}.path={path}", f"{prefix}.kind=vm", f"{prefix}.args=[{words}]"
    )
    row = rows(node, runtime)["runtime vm"]
    assert row.level is (Level.WARNING if lacks else Level.OK)
    assert lacks in row.detail
    assert bool(row.remedy) is bool(lacks)
