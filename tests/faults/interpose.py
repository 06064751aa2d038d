"""Programs in place of the helpers, which fail, hang or die in the middle of their work, or end the daemon there.

Each stands for one program (conmon, the OCI runtime, a CNI plugin) and normally becomes it. Armed for a verb, `before`
or `after` the program's work, it misbehaves there, once. One that kills the daemon waits until the daemon's successor
has started, and only then goes on: so the orphan works beside the successor. A patient one waits until it is told.
"""

from __future__ import annotations

import shutil
import signal
from typing import TYPE_CHECKING, TypeVarTuple, Unpack

import grpc
import pytest

from tests.faults.looking import is_alive, wait_until
from tests.harness import node

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.harness.daemon import Daemon

Ts = TypeVarTuple("Ts")
Moment = tuple[str, str, str]
"""A program, its verb, and whether before or after its work."""
PLUGINS = ("bridge", "portmap", "host-local")
LINGER_S = 0.6
"""Longer than a daemon's start takes; a successor that has recovered ends the wait."""

_SCRIPT = """#!/bin/sh
# {program}: NAME.VERB.MOMENT in {plans} holds `fail`, `hang`, `die` or the pid to kill; it works once.
verb=$CNI_COMMAND
if [ -z "$verb" ]; then
    verb=run
    for word in "$@"; do
        case $word in create|start|kill|delete|exec|state|features|--version) verb=$word; break ;; esac
    done
fi
strike() {{
    mv "{plans}/{name}.$verb.$1" "{plans}/struck" 2>/dev/null || return 0
    case $(cat "{plans}/struck") in
    fail) echo "made to fail" >&2; exit 1 ;;
    hang) exec sleep 600 ;;
    die) kill -KILL $$ ;;
    esac
    echo $$ > "{plans}/orphan"
    kill -KILL "$(cat "{plans}/struck")"
    left={turns}
    [ ! -e "{plans}/patient" ] || left=100000
    while [ ! -e "{plans}/go" ] && [ $left -gt 0 ]; do sleep 0.05; left=$((left - 1)); done
}}
if [ -e "{plans}/{name}.$verb.after" ]; then
    "{program}" "$@"
    status=$?
    strike after
    exit $status
fi
strike before
exec "{program}" "$@"
"""


class Interposers:
    """The programs of one daemon, and what they are armed for."""

    def __init__(self, directory: Path, *, runtimes: Mapping[str, str] | None = None) -> None:
        """`runtimes` are further programs with the command line of runtimes, by handler."""
        self.plugin_dir = directory / "plugins"
        self._program_dir = directory / "programs"
        self._plans = directory / "plans"
        for each in (self.plugin_dir, self._program_dir, self._plans):
            each.mkdir()
        for name in ("conmon", "runc"):
            program = shutil.which(name, path=node.search_path())
            self._write(self._program_dir / name, str(program))
        self._runtimes = dict(runtimes or {})
        for name, program in self._runtimes.items():
            self._write(self._program_dir / name, program)
        for name in PLUGINS:
            program = next(str(d / name) for d in node.PLUGIN_DIRS if (d / name).exists())
            self._write(self.plugin_dir / name, program)

    def settings(self) -> dict[str, object]:
        """What a daemon's configuration must say so that these are called."""
        return {
            "runtime": {
                "monitor": str(self._program_dir / "conmon"),
                "handlers": {
                    name: {"path": str(self._program_dir / name)}
                    for name in ("runc", *self._runtimes)
                },
            },
            "cni": {"plugin_dirs": [str(self.plugin_dir), *map(str, node.PLUGIN_DIRS)]},
        }

    def arm(
        self, daemon: Daemon, name: str, verb: str, moment: str, *, patient: bool = False
    ) -> None:
        """Let program `name` kill the daemon at `moment` of its next `verb`."""
        if patient:
            (self._plans / "patient").touch()
        (self._plans / f"{name}.{verb}.{moment}").write_text(str(daemon.pid))

    def arm_to(self, ending: str, name: str, verb: str, moment: str) -> None:
        """Let program `name` `fail`, `hang` or `die` at `moment` of its next `verb`."""
        (self._plans / f"{name}.{verb}.{moment}").write_text(ending)

    def struck(self) -> bool:
        """Whether what was armed has happened."""
        return (self._plans / "struck").exists()

    @property
    def orphan(self) -> int:
        """The process that has killed the daemon."""
        return int((self._plans / "orphan").read_text())

    def let_go(self) -> None:
        """The successor is up: let the orphan do the rest, and wait for its end, natural or not."""
        orphan = self.orphan
        (self._plans / "go").touch()
        wait_until(lambda: not is_alive(orphan), f"orphan {orphan} ends")

    def disarm(self) -> None:
        """Nothing is armed any more."""
        for plan in self._plans.iterdir():
            plan.unlink()

    def _write(self, file: Path, program: str) -> None:
        file.write_text(
            _SCRIPT.format(
                program=program, plans=self._plans, name=file.name, turns=round(LINGER_S / 0.05)
            )
        )
        file.chmod(0o755)


class Orphaned:
    """Runs a call in whose middle the daemon is killed, and starts it again at once."""

    def __init__(self, daemon: Daemon, interposers: Interposers) -> None:
        self._daemon = daemon
        self._interposers = interposers

    def __call__(self, moment: Moment, call: Callable[[Unpack[Ts]], object], *args: *Ts) -> None:
        """Make the call with the daemon's death at that moment of it."""
        self._interposers.arm(self._daemon, *moment)
        try:
            with pytest.raises(grpc.RpcError):
                call(*args)
            assert self._daemon.wait_ended() == -signal.SIGKILL
            assert self._interposers.struck()
            self._daemon.start()
            # Whatever the orphan still can do, it has done when the test looks.
            self._interposers.let_go()
        finally:
            self._interposers.disarm()
