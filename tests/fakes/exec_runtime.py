#!/usr/bin/python3 -SE
"""A runtime whose only command is a detached exec, for tests of the command that it starts.

It is called as `exec_runtime.py exec [--detach] --process FILE --pid-file FILE [--console-socket FILE] ID`, runs the
`args` of the process file in a session of their own, writes the pid and leaves, as runc does; without `--detach` it
stays, and ends as the command does. What else it does, the first word of `args` says:

    refuse      says so on stderr, writes no pid file, exits 255
    absent      says that there is no such program, as runc does, and fails as `refuse`
    refuse-0    the same, with exit status 0: a runtime's status proves nothing
    torn        leaves a pid file without a pid
    hang        never answers
    no-terminal runs `sleep` without handing out the terminal that was asked for
    stranger    writes the pid of a process that is not its own: 1
    anything else is a program
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import socket
import sys
import termios
import time


def main() -> int:
    argv = [word for word in sys.argv[1:] if word != "--detach"]
    attached = "--detach" not in sys.argv
    options = dict(zip(argv[1:-1:2], argv[2:-1:2]))  # noqa: B905 - /usr/bin/python3 may be an older one
    with open(options["--process"]) as file:
        args = json.load(file)["args"]
    how = args[0]
    if how.startswith("refuse"):
        sys.stderr.write('time="now" level=error msg="exec failed: no such file"\n')
        return 0 if how == "refuse-0" else 255
    if how == "absent":
        sys.stderr.write(
            'time="now" level=error msg="exec failed: unable to start container process: '
            'exec: \\"absent\\": executable file not found in $PATH"\n'
        )
        return 255
    if how == "hang":
        time.sleep(600)
    if how in ("torn", "stranger"):
        return leave_pid(options["--pid-file"], "" if how == "torn" else "1")
    console = options.get("--console-socket")
    if how == "no-terminal":
        args, console = ["sleep", "600"], None
    terminal = hand_out_terminal(console) if console else None
    child = os.fork()
    if child == 0:
        os.setsid()
        if terminal is not None:
            fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
            for number in range(3):
                os.dup2(terminal, number)
        os.execvp(args[0], args)
    leave_pid(options["--pid-file"], str(child))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 255 if attached else 0


def hand_out_terminal(console: str) -> int:
    """Send the master there; the slave."""
    master, slave = pty.openpty()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connected:
        connected.connect(console)
        socket.send_fds(connected, [b"/dev/ptmx"], [master])
    os.close(master)
    return slave


def leave_pid(path: str, text: str) -> int:
    with open(path, "w") as file:
        file.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
