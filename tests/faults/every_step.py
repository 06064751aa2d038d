"""A daemon that ends, or fails, at every step of its creations, one step after the other.

    python -m tests.faults.every_step DIRECTORY ACTION serve --config FILE

Once DIRECTORY holds a file `armed`, the first step that a rollback notes and that DIRECTORY/met does not name yet takes
the file away, is written to `met` as `KIND STEP`, and then ACTION happens: `kill` (SIGKILL, as a crash), `raise` (an
error of our own) or `bug` (an error that nobody expects). `met` outlives the daemon: so the steps are met one by one,
over as many lives as there are steps, and the list in the end is that of the running code. Where `armed` names a step,
it is that one, met before or not. DIRECTORY/seen has all that were noted, and `declared_steps` what the source has.
"""

from __future__ import annotations

import ast
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import cri_shim
from cri_shim.__main__ import main
from cri_shim.errors import UnavailableError
from cri_shim.rollback import Rollback

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.harness.daemon import Daemon


def declared_steps() -> set[str]:
    """The names of all steps that the source pushes on a rollback, and `commit`."""
    found = {"commit"}
    for file in Path(cri_shim.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_bytes())):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="rollback"), attr="push"),
                    args=[ast.Constant(value=str(step)), *_],
                ):
                    found.add(step)
    return found


class EveryStep:
    """The test's side: prepares a daemon, arms it and reads what it has met."""

    def __init__(self, daemon: Daemon, directory: Path, action: str) -> None:
        """From its next start on, `daemon` is one of these."""
        self._directory = directory
        self._plain = daemon.command_line()
        self._daemon = daemon
        self._action = action
        daemon.command_line = self._command_line  # type: ignore[method-assign]

    def _command_line(self, failpoint: str = "") -> list[str]:
        serve = self._plain[self._plain.index("serve") :]
        module = "tests.faults.every_step"
        return [sys.executable, "-m", module, str(self._directory), self._action, *serve]

    def arm(self, step: str = "") -> None:
        """The next new step is the one; or the next `step`, as `KIND STEP`."""
        unfinished = self._directory / "armed.unfinished"
        unfinished.write_text(step)
        unfinished.rename(self._directory / "armed")

    def disarm(self) -> None:
        """No step is, met or not."""
        (self._directory / "armed").unlink(missing_ok=True)

    def met(self) -> list[str]:
        """`KIND STEP` of each step met, in order."""
        return _lines(self._directory / "met")

    def seen(self) -> set[str]:
        """`KIND STEP` of each step that any creation has noted."""
        return set(_lines(self._directory / "seen"))

    def end(self) -> None:
        """From its next start on, the daemon is an ordinary one."""
        del self._daemon.command_line


class Observer:
    """The daemon's side; see `Rollback.observer`."""

    def __init__(self, directory: Path, action: str) -> None:
        self._armed = directory / "armed"
        self._met = directory / "met"
        self._seen_file = directory / "seen"
        self._seen: set[str] = set()
        self._action = action

    def __call__(self, what: str, step: str) -> None:
        """Note one step."""
        name = f"{what.split()[0]} {step}"
        if name not in self._seen:
            self._seen.add(name)
            with self._seen_file.open("a") as file:
                file.write(f"{name}\n")
        try:
            wanted = self._armed.read_text()
        except FileNotFoundError:
            return
        if wanted not in ("", name) or (not wanted and name in _lines(self._met)):
            return
        with self._met.open("a") as file:
            file.write(f"{name}\n")
        self._armed.unlink()
        os.write(2, f"{self._action} at {name}\n".encode())
        if self._action == "raise":
            raise UnavailableError(f"made to fail at {name}")
        if self._action == "bug":
            raise ZeroDivisionError(f"made to fail at {name}")
        os.kill(os.getpid(), signal.SIGKILL)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except FileNotFoundError:
        return []


def run(arguments: Sequence[str]) -> int:
    """Be `cri-shim` with what follows the first two arguments."""
    directory, action, *rest = arguments
    Rollback.observer = staticmethod(Observer(Path(directory), action))
    return main(rest)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
