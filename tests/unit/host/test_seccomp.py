"""The filter around hostile bytes: files, memory and threads work, everything else is not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from cri_shim.host.seccomp import build_filter

ATTEMPTS = """
import ctypes, errno, json, os, resource, signal, socket, sys, threading
from cri_shim.host import seccomp

libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
os.chdir(sys.argv[1])
assert seccomp.allow_only_work_on_files()

def attempt(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

def called(function, *arguments):
    return "done" if function(*arguments) >= 0 else errno.errorcode[ctypes.get_errno()]

def files():
    with open("a", "w") as file:
        file.write("x")
    os.mkdir("d"); os.symlink("a", "l"); os.link("a", "h"); os.mkfifo("f")
    os.chmod("a", 0o600); os.utime("a", (1, 1)); os.rename("h", "g"); os.unlink("g")
    assert sorted(os.listdir()) == ["a", "d", "f", "l"] and os.stat("a").st_size == 1

def thread():
    started = threading.Thread(target=ran.append, args=(1,))
    started.start()
    started.join()

ran = []
answers = {
    "files": attempt(files),
    "thread": attempt(thread),
    "own limits": attempt(resource.getrlimit, resource.RLIMIT_AS),
    "pipe": attempt(os.pipe),
    "fork": attempt(os.fork),
    "signal": attempt(os.kill, os.getppid(), 0),
    "own signal": attempt(os.kill, os.getpid(), 0),
    "socket": attempt(socket.socket, socket.AF_UNIX),
    "program": attempt(os.execv, "/bin/true", ["true"]),
    "root": attempt(os.chroot, "."),
    "limits of another": attempt(resource.prlimit, os.getppid(), resource.RLIMIT_AS),
    "namespace": called(libc.unshare, 0x10000000),
    "mount": called(libc.mount, b"none", b"/", b"tmpfs", 0, None),
    "tracing": called(libc.ptrace, 16, os.getppid(), 0, 0),
    "io_uring_setup": called(libc.syscall, 425, 1, 0),
    "pidfd_open": called(libc.syscall, 434, os.getppid(), 0),
    "clone3": called(libc.syscall, 435, 0, 0),
}
print(json.dumps([answers, ran]))
"""


@pytest.mark.skipif(not build_filter(os.uname().machine), reason="no filter for this machine")
def test_a_process_keeps_files_and_threads_and_nothing_else(tmp_path: object) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPTS, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answers, ran = json.loads(done.stdout)
    assert ran == [1]
    works = {"files", "thread", "own limits", "pipe"}
    assert {what for what, answer in answers.items() if answer == "done"} == works
    assert {answer for what, answer in answers.items() if what not in works} == {"ENOSYS"}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "riscv64", "loongarch64"])
def test_every_jump_of_a_filter_ends_inside_of_it(machine: str) -> None:
    code = build_filter(machine)
    steps = [code[at : at + 8] for at in range(0, len(code), 8)]
    assert steps[-1][0] == 0x06  # what is not listed is answered
    for at, step in enumerate(steps):
        assert at + max(step[2], step[3]) + 1 <= len(steps) - (step[0] != 0x06)
    assert len(steps) < 400


def test_a_machine_whose_numbers_are_unknown_has_no_filter() -> None:
    assert build_filter("s390x") == b""
