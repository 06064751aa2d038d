"""cri-shim's commands in one process, one after the other: as users run them, without a Python start for each.

`python -m tests.integration.cli.command_line` is that process: it takes a list of words a line and answers with the
exit code and what the command wrote, as JSON.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, NamedTuple

from tests.harness.daemon import CHECKOUT, environment

if TYPE_CHECKING:
    from collections.abc import Iterator


class Ended(NamedTuple):
    """A command that was run."""

    code: int
    out: str
    err: str


class CommandLine:
    """Runs commands in its process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, *words: str) -> Ended:
        """Run `cri-shim WORDS...`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return Ended(*json.loads(self._process.stdout.readline()))


@contextmanager
def command_line() -> Iterator[CommandLine]:
    """A process for commands; gone when this closes."""
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", __spec__.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=CHECKOUT,
        env=environment(),
    ) as process:
        yield CommandLine(process)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(10)


def serve() -> None:
    """Take commands until there are no more."""
    from cri_shim.__main__ import main

    answers = sys.stdout
    for line in sys.stdin:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = main(json.loads(line))
            except SystemExit as ended:
                code = int(ended.code or 0)
        print(json.dumps([code, out.getvalue(), err.getvalue()]), file=answers, flush=True)


if __name__ == "__main__":
    serve()
