"""What stands on the node for a container inside a gVisor sandbox: the process that its monitor watches.

runsc gives a container that joins a sandbox the streams of its `start`, not of its `create`, and leaves no process that
ends with it. So the monitor runs this program in runsc's place:

    runsc_proxy.py RUNSC OPTION... create --bundle DIR --pid-file FILE [OPTION...] ID

It has runsc create the container, leaves its own child behind, whose pid it writes to FILE, and ends as runsc did. That
child has the monitor's streams. It waits for a byte in DIR/start, has runsc start the container and writes to
DIR/started how that ended: a status, a newline, and the end of what runsc wrote to its log. Then it waits for the
container's end and ends with its code. Rules:
- Signals that reach it are passed on to the container, as those that reach a process of the node.
- When the sandbox is gone, so that nobody knows the code, it ends as one that was killed.
- It is all that there is of it: run with the bare interpreter, without a module of this package.
"""

from __future__ import annotations

import os
import signal
import sys

START, STARTED, LOG = "start", "started", "start.log"
MAX_WORDS_BYTES = 3500
"""What fits into a pipe in one piece, with the status."""
KILLED = 128 + signal.SIGKILL
_FORWARDED = {*range(1, signal.NSIG)} - {
    *(signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGSEGV),
    *(signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT),
    *range(32, 34),  # the C library's own
}


class Arguments:
    """The monitor's command line, taken apart."""

    def __init__(self, argv: list[str]) -> None:
        at = max(i for i, word in enumerate(argv) if word == "create" and "--bundle" in argv[i:])
        self.runsc = argv[:at]
        options = argv[at + 1 : -1]
        self.container_id = argv[-1]
        where = options.index("--pid-file")
        self.pid_file = options[where + 1]
        self.create = [*options[:where], *options[where + 2 :]]
        self.bundle = options[options.index("--bundle") + 1]

    def path(self, name: str) -> str:
        """A file in the bundle."""
        return f"{self.bundle}/{name}"


def main(argv: list[str]) -> int:
    """Create the container and leave its proxy behind; runsc's exit status."""
    arguments = Arguments(argv)
    code = run([*arguments.runsc, "create", *arguments.create, arguments.container_id])
    if code:
        return code
    for name in (START, STARTED):
        os.mkfifo(arguments.path(name), 0o600)
    # Open for both: neither waits for the other side, which may have gone and come again.
    start, started = (os.open(arguments.path(name), os.O_RDWR) for name in (START, STARTED))
    pid = os.fork()
    if pid == 0:
        os._exit(stand(arguments, start, started))
    unfinished = f"{arguments.pid_file}.unfinished"
    with open(unfinished, "w") as file:
        file.write(str(pid))
    os.rename(unfinished, arguments.pid_file)
    return 0


def stand(arguments: Arguments, start: int, started: int) -> int:
    """Be there for the container, from its start to its end; its exit code."""
    os.read(start, 1)
    log = arguments.path(LOG)
    options = ["--log", log, "--log-format", "json"]
    code = run([*arguments.runsc, *options, "start", arguments.container_id])
    os.write(started, f"{code}\n".encode() + tail(log))
    if code:
        return 128
    for number in _FORWARDED:
        signal.signal(number, lambda got, _: forward(arguments, got))
    drop_streams()
    return wait(arguments)


def run(argv: list[str]) -> int:
    """Run a command with our streams to its end; its exit status."""
    return os.waitstatus_to_exitcode(wait_for(os.posix_spawn(argv[0], argv, os.environ)))


def wait_for(pid: int) -> int:
    """The wait status of one child; signals meanwhile are handled."""
    return os.waitpid(pid, 0)[1]


def tail(path: str) -> bytes:
    """The end of a file, if it is there."""
    try:
        with open(path, "rb") as file:
            return file.read()[-MAX_WORDS_BYTES:]
    except OSError:
        return b""


def forward(arguments: Arguments, number: int) -> None:
    """Pass a signal on; whether it is taken is the container's affair."""
    try:
        run([*arguments.runsc, "kill", arguments.container_id, str(number)])
    except OSError:
        pass


def drop_streams() -> None:
    """The sandbox has them: who reads or writes the other ends must see when it closes them."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    os.close(nothing)


def wait(arguments: Arguments) -> int:
    """The container's exit code, once it has one."""
    reading, writing = os.pipe()
    argv = [*arguments.runsc, "wait", arguments.container_id]
    pid = os.posix_spawn(
        argv[0], argv, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, writing, 1)]
    )
    os.close(writing)
    answer = b""
    while chunk := os.read(reading, 4096):
        answer += chunk
    _, found, rest = answer.partition(b'"exitStatus":')
    digits = rest.split(b"}")[0].split(b",")[0].strip()
    if wait_for(pid) or not found or not digits.isdigit():
        return KILLED
    return int(digits) & 255


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
