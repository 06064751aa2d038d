"""The process that stands for a container in a gVisor sandbox, with a script in runsc's place."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import WrongStateError
from cri_shim.oci.proxy_start import start_proxied
from cri_shim.oci.vm import PROXY
from tests.fakes.clock import block_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ID = "c" * 64
RUNSC = """#!/bin/sh
case "$*" in *--fail-create*) echo 'no such bundle' >&2; exit 1;; esac
for word; do case $word in create|start|wait|kill) command=$word; break;; esac; done
echo "$*" >>"$BUNDLE/said"
case $command in
    start) echo from the container; cat "$BUNDLE/start-fails" >"$BUNDLE/start.log" 2>/dev/null && exit 128; exit 0;;
    wait) while [ ! -e "$BUNDLE/code" ]; do sleep 0.01; done; cat "$BUNDLE/code"; [ -s "$BUNDLE/code" ];;
esac
"""


class Monitor:
    """What conmon does: it runs the proxy and becomes the parent of what that leaves."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle
        (bundle / "runsc").write_text(RUNSC)
        (bundle / "runsc").chmod(0o755)
        self.out = bundle / "out"
        self.pid = 0

    def create(self, *options: str) -> subprocess.CompletedProcess[bytes]:
        with self.out.open("wb") as out:
            done = subprocess.run(
                [
                    *(
                        sys.executable,
                        "-I",
                        "-S",
                        str(PROXY),
                        str(self.bundle / "runsc"),
                        "--root",
                        "/r",
                    ),
                    *(*options, "create", "--bundle", str(self.bundle)),
                    *("--pid-file", str(self.bundle / "pid"), ID),
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.PIPE if options else out,
                env={"BUNDLE": str(self.bundle), "PATH": os.environ["PATH"]},
                check=False,
            )
        if done.returncode == 0:
            self.pid = int((self.bundle / "pid").read_text())
        return done

    def start(self) -> tuple[int, str]:
        return asyncio.run(start_proxied(self.bundle, "starting", 10))

    def end(self, answer: str) -> None:
        unfinished = self.bundle / "code.unfinished"
        unfinished.write_text(answer)
        unfinished.rename(self.bundle / "code")

    def exit_code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def said(self) -> list[str]:
        return (self.bundle / "said").read_text().splitlines()


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Monitor]:
    from cri_shim.host import syscalls

    before = syscalls.is_child_subreaper()
    syscalls.set_child_subreaper(enabled=True)
    made = Monitor(tmp_path)
    yield made
    syscalls.set_child_subreaper(enabled=before)


def until(monitor: Monitor, words: str) -> None:
    block_until(lambda: any(words in line for line in monitor.said()))


def test_it_ends_with_the_containers_code_and_gave_it_its_streams(monitor: Monitor) -> None:
    assert monitor.create().returncode == 0
    assert monitor.said() == [f"--root /r create --bundle {monitor.bundle} {ID}"]
    assert monitor.start() == (0, "")
    monitor.end('{"id":"x","exitStatus":7}\n')
    assert monitor.exit_code() == 7
    assert monitor.out.read_text() == "from the container\n"


def test_a_creation_that_fails_fails_as_runsc_does_and_leaves_nobody(monitor: Monitor) -> None:
    done = monitor.create("--fail-create")
    assert (done.returncode, done.stderr) == (1, b"no such bundle\n")
    assert not (monitor.bundle / "pid").exists()


def test_a_start_that_fails_says_how_and_is_an_end(monitor: Monitor) -> None:
    monitor.create()
    (monitor.bundle / "start-fails").write_text('{"msg":"no such file","level":"error"}')
    assert monitor.start() == (128, '{"msg":"no such file","level":"error"}')
    assert monitor.exit_code() == 128


def test_signals_are_passed_on(monitor: Monitor) -> None:
    monitor.create()
    monitor.start()
    until(monitor, "wait")
    for number in (signal.SIGTERM, signal.SIGUSR1, 40):
        os.kill(monitor.pid, number)
        until(monitor, f"kill {ID} {int(number)}")
    monitor.end('{"exitStatus":143}')
    assert monitor.exit_code() == 143


@pytest.mark.parametrize("answer", ["", "{}", '{"exitStatus":-1}'])
def test_a_sandbox_that_is_gone_is_a_kill(monitor: Monitor, answer: str) -> None:
    monitor.create()
    monitor.start()
    monitor.end(answer)
    assert monitor.exit_code() == 137


def test_a_proxy_that_is_gone_is_said(monitor: Monitor) -> None:
    monitor.create()
    os.kill(monitor.pid, signal.SIGKILL)
    monitor.exit_code()
    with pytest.raises(WrongStateError, match="starting: the process that stands for it has ended"):
        monitor.start()
