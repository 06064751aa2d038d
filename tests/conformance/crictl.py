"""crictl as a person types it: one command, what it printed, and what it said when it refused."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from tests.harness import node
from tests.harness.daemon import environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

COMMAND_TIMEOUT_S = 60
WORDS_TIMEOUT_S = 15
REMEDIES: Mapping[str, str] = {
    command: f"put {command} of cri-tools v1.36 or newer on PATH"
    for command in ("crictl", "critest")
}


class CrictlError(AssertionError):
    """A command did not do what the test expects."""


class Going:
    """A command under way."""

    def __init__(self, process: subprocess.Popen[bytes], fd: int) -> None:
        self.process = process
        self.fd = fd
        """The terminal, or the reading end of what it writes."""
        self.said = ""

    def until(self, words: str) -> None:
        """Read until it has said these words. Raises: CrictlError when it doesn't."""
        deadline = time.monotonic() + WORDS_TIMEOUT_S
        while words not in self.said:
            if time.monotonic() > deadline:
                raise CrictlError(f"it never said {words!r}:\n{self.said}")
            time.sleep(0.01)
            self.read()

    def read(self) -> None:
        """Take what it has said meanwhile."""
        with suppress(BlockingIOError, OSError):  # EIO: it has ended
            self.said += os.read(self.fd, 1 << 16).decode(errors="replace")

    def type(self, text: str) -> None:
        """As on a keyboard."""
        os.write(self.fd, text.encode())


class Crictl:
    """Runs crictl against one socket."""

    def __init__(self, socket: Path, scratch: Path) -> None:
        """`scratch`: where configurations are written for it."""
        self._scratch = scratch
        # One of its own: a machine's is not for tests, and without any crictl complains.
        config = scratch / "crictl.yaml"
        config.write_text(f"runtime-endpoint: unix://{socket}\nimage-endpoint: unix://{socket}\n")
        self._environment = {
            **environment(),
            "CRI_CONFIG_FILE": str(config),
            "HOME": str(scratch),
        }
        self._files = 0

    def __call__(self, *arguments: str) -> str:
        """What it prints. Raises: CrictlError if it fails."""
        return self.streams(*arguments)[0].strip()

    def streams(self, *arguments: str) -> tuple[str, str]:
        """What it writes to its standard output and error. Raises: CrictlError if it fails."""
        done = self._run(arguments)
        if done.returncode != 0:
            raise CrictlError(f"{_line(arguments)}: status {done.returncode}\n{done.stderr}")
        return done.stdout, done.stderr

    def refusal(self, *arguments: str) -> str:
        """The last line that it says when it fails. Raises: CrictlError if it doesn't."""
        done = self._run(arguments)
        if done.returncode == 0:
            raise CrictlError(f"{_line(arguments)}: it should have failed, and said\n{done.stdout}")
        lines = done.stderr.strip().splitlines()
        if not lines:
            raise CrictlError(f"{_line(arguments)}: status {done.returncode} without a word")
        return lines[-1]

    def shell(self, script: str) -> str:
        """What a script prints in which crictl is called by its name. Raises: CrictlError if a command fails."""
        done = self._execute("bash", "-euo", "pipefail", "-c", script)
        if done.returncode != 0:
            raise CrictlError(f"{script}\nstatus {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def json(self, command: str, *arguments: str) -> Any:
        """What it prints with `-o json`."""
        return json.loads(self(command, "-o", "json", *arguments))

    def rows(self, *arguments: str) -> list[str]:
        """The lines of a table, without its heading."""
        return self(*arguments).splitlines()[1:]

    def file(self, content: object) -> str:
        """Write a configuration; its path, for the command line."""
        self._files += 1
        path = self._scratch / f"{self._files}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    @contextmanager
    def going(
        self, *arguments: str, terminal: bool = False, stdin: int | None = None
    ) -> Iterator[Going]:
        """A command that goes on, on a terminal or with pipes; killed at the end."""
        reading, writing = pty.openpty() if terminal else os.pipe()
        process = subprocess.Popen(
            # `setsid -c` makes the terminal its own: only then crictl is told of new sizes.
            [*(["setsid", "-c", "-w"] * terminal), "crictl", "--timeout", "30s", *arguments],
            env=self._environment,
            cwd=self._scratch,
            stdin=writing if terminal else subprocess.DEVNULL if stdin is None else stdin,
            stdout=writing,
            stderr=writing,
            start_new_session=True,
        )
        os.close(writing)
        os.set_blocking(reading, False)
        try:
            yield Going(process, reading)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(reading)

    def _run(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return self._execute("crictl", "--timeout", "30s", *arguments)

    def _execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=self._environment,
            cwd=self._scratch,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )


def missing(command: str) -> list[node.Missing]:
    """One of cri-tools' commands, if PATH hasn't it."""
    if shutil.which(command, path=node.search_path()):
        return []
    return [node.Missing(command, remedy=REMEDIES[command])]


def _line(arguments: Sequence[str]) -> str:
    return " ".join(["crictl", *arguments])
