"""Runs the programs that the daemon uses, to get their versions for `version` and `check`."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cri_shim.cli.output import printable
from cri_shim.config.model import HandlerKind
from cri_shim.errors import CommandError, DeadlineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cri_shim.config.model import HandlerSettings
    from cri_shim.config.values import EnvName
    from cri_shim.host.process import Reaper

TIMEOUT_S = 5.0
_SHIM_VERSION = re.compile(r"^\s*Version:\s*(\S+)", re.MULTILINE)
_VERSION = re.compile(r"(?<!\d)(\d+)\.(\d+)(?:\.(\d+))?")


@dataclass(frozen=True, slots=True)
class Answer:
    """The output of a program, or why there is none."""

    path: str | None
    """The program's path; None if it was not found."""
    text: str
    problem: str = ""
    """Why the program failed; "" if it succeeded."""

    @property
    def first_line(self) -> str:
        """The first line, which has the version, safe to print."""
        return printable(self.text.strip().partition("\n")[0])

    @property
    def version(self) -> tuple[int, int, int] | None:
        """The first version number in the output."""
        match = _VERSION.search(self.text)
        return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


async def ask(
    reaper: Reaper,
    program: str,
    args: Sequence[str] = ("--version",),
    *,
    env: Mapping[EnvName, str] | None = None,
) -> Answer:
    """Run a program with an option such as --version, for at most 5 s. A failure is a result, not an error."""
    search = os.environ.get("PATH", os.defpath)
    environment = {"PATH": search} | {str(name): value for name, value in (env or {}).items()}
    path = shutil.which(program, path=search)
    if path is None:
        there = os.path.exists(program) if "/" in program else False
        return Answer(None, "", f"{program} is not executable" if there else f"{program} not found")
    try:
        done = await reaper.run([path, *args], timeout_s=TIMEOUT_S, env=environment)
    except (OSError, CommandError, DeadlineError) as error:
        return Answer(path, "", printable(str(error)))
    text = done.stdout.decode("utf-8", "replace")
    if not done.ok:
        said = printable(done.stderr_tail.strip().rpartition("\n")[2] or text)
        return Answer(path, text, f"{path} {done.ending.describe()}: {said or 'it said nothing'}")
    # Some programs (old conmon, kata-runtime) print their version to standard error.
    return Answer(path, text or done.stderr_tail)


async def ask_handler(reaper: Reaper, handler: HandlerSettings) -> Answer:
    """The version of a runtime handler's program. A shim has an option of its own, and an answer of several lines."""
    if handler.kind is not HandlerKind.SHIM:
        return await ask(reaper, handler.path, env=handler.env)
    answer = await ask(reaper, handler.path, ["-v"], env=handler.env)
    first, _, rest = answer.text.strip().partition("\n")
    found = _SHIM_VERSION.search(rest)
    if answer.problem or found is None:
        return answer
    return replace(answer, text=f"{first.rstrip(':')} {found[1]}")
