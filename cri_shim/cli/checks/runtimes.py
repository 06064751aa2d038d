"""Checks the programs and libraries that the daemon uses: OCI runtimes, conmon, catatonit, libarchive."""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import TYPE_CHECKING

from cri_shim.cli.checks.row import Node, Row, failed, ok, version_text, warning
from cri_shim.cli.programs import ask, ask_handler
from cri_shim.config.model import HandlerKind
from cri_shim.oci.refusals import crun_problem

if TYPE_CHECKING:
    from cri_shim.cli.programs import Answer
    from cri_shim.config.model import HandlerSettings, RuntimeSettings
    from cri_shim.host.cgroups.layout import Layout
    from cri_shim.host.process import Reaper

_ARGS = "the handler's args"
ELSEWHERE = {
    "containerd-shim-kata-v2": "https://katacontainers.io",
    "containerd-shim-runsc-v1": "https://gvisor.dev/docs/user_guide/install",
    "kata-runtime": "https://katacontainers.io",
    "runsc": "https://gvisor.dev/docs/user_guide/install",
}
"""Installation pages of programs that few distributions package."""


def known_flaw(program: str, version: tuple[int, int, int]) -> str:
    """Container escapes known in this upstream version, or "".

    Distributions backport fixes, so it is only a warning.
    """
    if program == "runc":
        if version < (1, 1, 12):
            return "CVE-2024-21626 and later escapes are fixed upstream in 1.1.12, 1.2.8 and 1.3.3"
        if version < (1, 2, 8) or (1, 3, 0) <= version < (1, 3, 3):
            return "CVE-2025-31133, CVE-2025-52565 and CVE-2025-52881 are fixed upstream in 1.2.8 and 1.3.3"
    if program == "crun" and version < (1, 4, 4):
        return "CVE-2022-27650 is fixed upstream in 1.4.4"
    return ""


async def runtime_handlers(
    node: Node, reaper: Reaper, settings: RuntimeSettings, layout: Layout | None
) -> list[Row]:
    """A row for each handler. Only a missing default handler is a failure."""
    answers = await asyncio.gather(
        *(ask_handler(reaper, handler) for handler in settings.handlers.values())
    )
    return [
        _handler_row(node, name, handler, answer, layout, default=name == settings.default_handler)
        for (name, handler), answer in zip(settings.handlers.items(), answers, strict=True)
    ]


def _handler_row(
    node: Node,
    handler: str,
    settings: HandlerSettings,
    answer: Answer,
    layout: Layout | None,
    *,
    default: bool,
) -> Row:
    name = f"runtime {handler}"
    miss = failed if default else warning
    program = os.path.basename(settings.path)
    if answer.problem:
        cost = "it is the default handler" if default else "pods that request it are refused"
        source = ELSEWHERE.get(program)
        install = f"install it from {source}" if source else node.install(program)
        remedy = f"{install}, or set runtime.handlers.{handler}.path"
        if not default:
            remedy += f", or remove the handler with runtime.handlers.{handler}: null"
        return miss(name, f"{answer.problem}; {cost}", remedy)
    says = f"{answer.first_line} ({answer.path})"
    is_crun = program == "crun" or answer.text.startswith("crun ")
    if is_crun and (problem := crun_problem(layout)) is not None:
        return miss(name, f"{says} {problem[0]}", problem[1])
    lacks = []
    if settings.kind is HandlerKind.VM:
        lacks = vm_lacks(node, settings, answer)
    elif settings.kind is HandlerKind.SHIM:
        lacks = shim_lacks(node, settings)
    if lacks:
        return miss(
            name,
            f"{says} {'; '.join(problem for problem, _ in lacks)}",
            "; ".join(remedy for _, remedy in lacks),
        )
    flaw = known_flaw(program, answer.version) if answer.version else ""
    if flaw:
        return warning(
            name,
            f"{says}: {flaw}",
            f"upgrade it ({node.install(program)}), unless your distribution has backported the fixes",
        )
    return ok(name, says + (", the default" if default else ""))


def vm_lacks(node: Node, settings: HandlerSettings, answer: Answer) -> list[tuple[str, str]]:
    """What a runtime of kind vm needs and does not find, each with its remedy."""
    lacks = []
    is_runsc = answer.text.startswith("runsc ")
    if not is_runsc and answer.version is not None and answer.version[0] >= 2:
        return [
            (
                "is no OCI runtime any more since version 2, but a shim of containerd's",
                "install kata-runtime 1.x, or use its shim: path containerd-shim-kata-v2, kind shim",
            )
        ]
    if ("--platform=kvm" in settings.args if is_runsc else True) and not node.exists("/dev/kvm"):
        lacks.append(
            (
                "has no /dev/kvm",
                "take another --platform of runsc, or modprobe kvm"
                if is_runsc
                else "use a machine with virtualization: modprobe kvm",
            )
        )
    if is_runsc:
        return lacks
    for option, value in zip(settings.args, settings.args[1:], strict=False):
        if option == "--kata-config" and not node.exists(value):
            lacks.append(
                (
                    f"has no configuration {value}",
                    f"put kata's configuration.toml there, or correct --kata-config in {_ARGS}",
                )
            )
    if not node.exists("/dev/log"):
        lacks.append(
            ("has no /dev/log, without which it starts nothing", "run a syslog daemon, or journald")
        )
    return lacks


def shim_lacks(node: Node, settings: HandlerSettings) -> list[tuple[str, str]]:
    """What a shim needs and does not find, each with its remedy."""
    lacks = []
    program = os.path.basename(settings.path)
    if "-runc-" in program and shutil.which("runc") is None:
        lacks.append(("finds no runc, which it drives", node.install("runc")))
    if "-kata-" in program and not node.exists("/dev/kvm"):
        lacks.append(("has no /dev/kvm", "use a machine with virtualization: modprobe kvm"))
    if settings.config_path and not node.exists(settings.config_path):
        lacks.append(
            (
                f"has no configuration {settings.config_path}",
                "put it there, or correct the handler's config_path",
            )
        )
    return lacks


async def monitor(node: Node, reaper: Reaper, program: str) -> Row:
    """Whether conmon is installed and has --full-attach, which Attach needs."""
    says, options = await asyncio.gather(ask(reaper, program), ask(reaper, program, ["--help"]))
    remedy = f"{node.install('conmon')}, or set runtime.monitor"
    if says.problem:
        return failed("conmon", says.problem, remedy)
    if not options.problem and "--full-attach" not in options.text:
        return failed(
            "conmon", f"{says.first_line} has no option --full-attach", f"use a newer one: {remedy}"
        )
    return ok("conmon", f"{says.first_line} ({says.path})")


async def pause_program(node: Node, reaper: Reaper, image: str | None) -> Row:
    """Whether catatonit is installed, from which the built-in pause image is built."""
    name = "pause program"
    if image is not None:
        return ok(name, f"not needed, sandbox.image is {image}")
    answer = await ask(reaper, "catatonit")
    if answer.path is None:
        return failed(
            name, answer.problem, f"{node.install('catatonit')}, or set sandbox.image to an image"
        )
    return ok(name, f"{answer.first_line or 'catatonit'} ({answer.path})")


def libarchive(node: Node) -> Row:
    """Load libarchive, which unpacks layers."""
    try:
        from libarchive.ffi import version_number
    except (ImportError, OSError, AttributeError) as error:
        return failed(
            "libarchive", f"cannot be loaded: {error}", node.install("libarchive13", "libarchive")
        )
    number = version_number()
    version = version_text((number // 1_000_000, number // 1000 % 1000, number % 1000))
    return ok("libarchive", version)
