"""Running `cri-shim image` in a test: against a daemon on this loop, or without one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cri_shim.cli import image
from cri_shim.cli.parser import Parser

if TYPE_CHECKING:
    from pathlib import Path


def command(*words: str) -> int:
    """The command's exit code."""
    parser = Parser("cri-shim image")
    image.configure(parser)
    arguments = parser.parse_args(words)
    code: int = arguments.run(arguments)
    return code


async def run(socket_path: Path, *words: str) -> int:
    """A command blocks, and the server answers on this loop."""
    return await asyncio.to_thread(command, *words, "--socket", str(socket_path))
