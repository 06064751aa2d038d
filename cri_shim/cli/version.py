"""`cri-shim version`: prints the versions of cri-shim, Python, conmon and the OCI runtimes."""

from __future__ import annotations

import asyncio
import platform
import sys
from typing import TYPE_CHECKING, Any

from cri_shim import __version__
from cri_shim.cli.output import json_text, table
from cri_shim.cli.parser import add_config_options
from cri_shim.config import load_config

if TYPE_CHECKING:
    import argparse

    from cri_shim.cli.programs import Answer
    from cri_shim.config.model import RuntimeSettings

CRI_APIS = ("runtime.v1", "runtime.v1alpha2")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the versions. A missing program is reported in its line and is no failure. Raises ConfigError."""
    settings = load_config(args.config, args.set).runtime
    monitor, handlers = asyncio.run(_ask_all(settings))
    if args.json:
        print(
            json_text(
                {
                    "version": __version__,
                    "cri": list(CRI_APIS),
                    "python": platform.python_version(),
                    "monitor": _document(monitor),
                    "handlers": {name: _document(answer) for name, answer in handlers.items()},
                }
            )
        )
        return 0
    rows = [
        ("cri-shim", __version__),
        ("CRI", ", ".join(CRI_APIS)),
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("monitor", _line(monitor)),
        *((f"handler {name}", _line(answer)) for name, answer in handlers.items()),
    ]
    for line in table(rows):
        print(line)
    return 0


async def _ask_all(settings: RuntimeSettings) -> tuple[Answer, dict[str, Answer]]:
    from cri_shim.cli.programs import ask, ask_handler
    from cri_shim.host.process import Reaper

    reaper = Reaper()
    reaper.open()
    try:
        monitor, *answers = await asyncio.gather(
            ask(reaper, settings.monitor),
            *(ask_handler(reaper, handler) for handler in settings.handlers.values()),
        )
    finally:
        reaper.close()
    return monitor, dict(zip(settings.handlers, answers, strict=True))


def _line(answer: Answer) -> str:
    return answer.problem or f"{answer.first_line} ({answer.path})"


def _document(answer: Answer) -> dict[str, Any]:
    return {
        "path": answer.path,
        "version": None if answer.problem else answer.first_line,
        "problem": answer.problem or None,
    }
