#!/usr/bin/python3 -SE
"""kata-runtime 1.x, its shim, its proxy and its hypervisor, for tests on a node without virtualisation.

It behaves as the real one was seen to, bad habits included; nothing here is kinder:

- a sandbox takes seconds to boot, a container one; `times` in the configuration file scales them all
- the process that stands for a container or an exec is a shim on the node, which passes signals on and ends with the
  container's code, or with 1 when the virtual machine is gone; its pid stays in `state` after its end; a signal that
  speaks of a fault (SIGQUIT, SIGABRT, ...) ends the shim itself, and what it stands for goes on
- `kill TERM` and `kill KILL` also stop the container, by force after ten seconds; of a sandbox, the whole machine
- `delete` of a container that was created and never started leaves its shim, and its name taken
- `delete --force` of what runs waits some ten seconds; of what is unknown it succeeds
- all commands of a sandbox, and `list`, wait for one lock without a deadline; what hangs holds it for ever
- a sandbox whose creation was cut short can't be deleted, and its machine runs on
- nothing of the bundle's annotations is echoed; statistics leave out zeros; nobody tells of an OOM in the guest

The guest is a PID namespace below the hypervisor's process: with that it dies whole. The configuration file has lines
`KEY=VALUE`: `times` (1), `hang` (a command that then never ends while it holds the lock, or `boot`).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import pty
import signal
import socket
import sys
import termios
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SBS, VM = Path("/run/vc/sbs"), Path("/run/vc/vm")
SHARED = Path("/run/kata-containers/shared/sandboxes")
MAPPING = Path("/run/kata-containers/containers-mapping")
CGROUPS = Path("/sys/fs/cgroup")
STOP_S, BOOT_S, CREATE_S, EXEC_S = 10.0, 7.6, 0.9, 1.2
libc = ctypes.CDLL(None, use_errno=True)
MS_BIND, MS_REC, MS_SLAVE, MNT_DETACH = 4096, 16384, 1 << 19, 2
Document = dict[str, Any]
COMMANDS = ("create", "start", "state", "kill", "delete", "exec", "events", "update", "list")
CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG = 1
FAULTS = {
    *(signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGQUIT, signal.SIGSEGV),
    *(signal.SIGSTKFLT, signal.SIGSYS, signal.SIGTRAP),
}


class RefusedError(Exception):
    """What the runtime says, and exits with 1."""


def call(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


# --- the guest -------------------------------------------------------------------------------------------------------


class Guest:
    """The agent: starts, signals and waits for processes in root file systems that the node shares."""

    def __init__(self) -> None:
        self.processes: dict[str, int] = {}
        self.codes: dict[str, int] = {}
        self.streams: dict[str, tuple[Document, list[int]]] = {}
        self.ended = threading.Condition()

    def serve(self, listening: socket.socket) -> None:
        threading.Thread(target=self.reap, daemon=True).start()
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, 0)
            except ChildProcessError:
                time.sleep(0.01)
                continue
            code = os.waitstatus_to_exitcode(status)
            with self.ended:
                for key, known in self.processes.items():
                    if known == pid and key not in self.codes:
                        self.codes[key] = code if code >= 0 else 128 - code
                self.ended.notify_all()

    def answer(self, connection: socket.socket) -> None:
        with connection:
            data, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
            request = json.loads(data or b"{}")
            try:
                reply = self.handle(request, descriptors)
            except OSError as error:
                reply = {
                    "error": str(error),
                    "missing": error.errno in (errno.ENOENT, errno.EACCES),
                }
            with contextlib.suppress(OSError):
                connection.send(json.dumps(reply).encode())

    def handle(self, request: Document, descriptors: list[int]) -> Document:
        key = request["key"]
        match request["do"]:
            case "add":
                self.streams[key] = (request, descriptors)
            case "start":
                spec, given = self.streams[key]
                with self.ended:  # who reaps it waits for its name
                    self.processes[key] = spawn_inside(spec, given)
                for fd in given:
                    os.close(fd)
            case "signal":
                self.kill(key, request["signal"], whole=request.get("whole", False))
            case "wait":
                with self.ended:
                    self.ended.wait_for(lambda: key in self.codes)
                return {"code": self.codes[key]}
            case "status":
                begun = key in self.processes
                status = "stopped" if key in self.codes else "running" if begun else "created"
                return {"status": status}
            case "usage":
                return {"pids": len(self.family(key)), "cpu": time.process_time_ns()}
        return {}

    def family(self, key: str) -> list[int]:
        """The processes of a container: those of its session, and below them."""
        leader = self.processes.get(key)
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    if os.getsid(int(name)) == leader:
                        found.append(int(name))
        return found

    def kill(self, key: str, number: int, *, whole: bool) -> None:
        if key not in self.processes:
            with self.ended:  # never started
                self.codes[key] = 128 + number
                self.ended.notify_all()
            return
        for pid in self.family(key) if whole else [self.processes[key]]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def spawn_inside(spec: Document, given: list[int]) -> int:
    """Run `args` in `root`; an error that comes before the program is raised here."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            if spec["terminal"]:
                fcntl.ioctl(given[0], termios.TIOCSCTTY, 0)
                given = given * 3
            for number, fd in enumerate(given[:3]):
                os.dup2(fd, number)
            call(libc.unshare(CLONE_NEWNS))
            for name in ("dev", "proc"):
                os.makedirs(f"{spec['root']}/{name}", exist_ok=True)
                target = os.fsencode(f"{spec['root']}/{name}")
                call(libc.mount(f"/{name}".encode(), target, None, MS_BIND | MS_REC, None))
            os.chroot(spec["root"])
            os.chdir(spec["cwd"])
            env = dict(word.partition("=")[::2] for word in spec["env"])
            os.execvpe(spec["args"][0], spec["args"], env)
        except OSError as error:
            os.write(writing, str(error.errno).encode())
        os._exit(1)
    os.close(writing)
    failed = os.read(reading, 16)
    os.close(reading)
    if failed:
        raise OSError(int(failed), os.strerror(int(failed)))
    return pid


def hypervisor(sandbox: str) -> int:
    """The virtual machine: booted once it listens."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(str(VM / sandbox / "agent"))
    listening.listen(64)
    call(libc.unshare(CLONE_NEWPID | CLONE_NEWNS))
    if os.fork() == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        call(libc.mount(b"none", b"/", None, MS_REC | MS_SLAVE, None))
        call(libc.mount(b"proc", b"/proc", b"proc", 0, None))
        Guest().serve(listening)
    listening.close()
    os.wait()
    return 1


def ask(sandbox: str, descriptors: list[int] | None = None, **request: object) -> Document:
    """One question to the agent. Raises OSError when there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(str(VM / sandbox / "agent"))
        socket.send_fds(connection, [json.dumps(request).encode()], descriptors or [])
        answer: Document = json.loads(
            connection.recv(1 << 16) or b'{"error": "the machine is gone"}'
        )
    if "error" in answer:
        raise OSError(errno.ENOENT if answer.get("missing") else errno.EIO, answer["error"])
    return answer


def shim(sandbox: str, key: str) -> int:
    """What stands for a process of the guest."""

    def forward(number: int, _frame: object) -> None:
        with contextlib.suppress(OSError):
            ask(sandbox, do="signal", key=key, signal=number)

    for number in set(range(1, 32)) - {9, 17, 19} - FAULTS:
        signal.signal(number, forward)
    for fd in range(3):
        with contextlib.suppress(OSError):
            os.close(fd)
    try:
        return int(ask(sandbox, do="wait", key=key)["code"])
    except OSError:
        return 1


# --- the command line ------------------------------------------------------------------------------------------------


class Options:
    """`[GLOBAL...] COMMAND [OPTION...] ID [WORD...]`."""

    WITH_VALUE = frozenset(
        (
            *("--kata-config", "--log", "--log-format", "--root", "--bundle", "-b", "--pid-file"),
            *("--console-socket", "--process", "-p", "--resources", "-r", "--interval"),
            *("--memory", "--cpu-share"),
        )
    )

    def __init__(self, argv: list[str]) -> None:
        self.values: dict[str, str] = {}
        self.words: list[str] = []
        left = list(argv)
        while left:
            word = left.pop(0)
            name, assigned, value = word.partition("=")
            if name in self.WITH_VALUE:
                self.values[name] = value if assigned else left.pop(0)
            elif word.startswith("-"):
                self.values[word] = ""
            else:
                self.words.append(word)
        self.command = self.words.pop(0) if self.words else ""

    def get(self, *names: str) -> str | None:
        return next((self.values[name] for name in names if name in self.values), None)


class Runtime:
    """One call."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.settings = {"times": "1", "hang": ""}
        if config := options.get("--kata-config"):
            for line in Path(config).read_text().split():
                key, _, value = line.partition("=")
                self.settings[key] = value
        self.times = float(self.settings["times"])

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds * self.times)

    def hang_if(self, what: str) -> None:
        if self.settings["hang"] == what:
            while True:
                time.sleep(3600)

    @contextlib.contextmanager
    def lock(self, sandbox: str) -> Iterator[None]:
        with (SBS / sandbox / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # --- records

    def find(self, container: str) -> tuple[str, Document]:
        """Its sandbox and its record."""
        try:
            sandbox = os.listdir(MAPPING / container)[0]
        except (FileNotFoundError, IndexError):
            raise RefusedError(f"Container ID ({container}) does not exist") from None
        if not (SBS / sandbox / "persist.json").exists():
            raise RefusedError(f"open {SBS}/{sandbox}/persist.json: no such file or directory")
        try:
            return sandbox, json.loads((SBS / sandbox / container / "config.json").read_text())
        except FileNotFoundError:
            raise RefusedError(f"Container ID ({container}) does not exist") from None

    def save(self, sandbox: str, record: Document) -> None:
        directory = SBS / sandbox / record["id"]
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(record))

    def status(self, sandbox: str, record: Document) -> str:
        if not alive(record["pid"]):
            return "stopped"
        try:
            return str(ask(sandbox, do="status", key=record["id"])["status"])
        except OSError:
            return "stopped"

    # --- create

    def create(self, container: str) -> int:
        bundle = Path(self.options.get("--bundle", "-b") or ".")
        spec = json.loads((bundle / "config.json").read_text())
        annotations = spec.get("annotations", {})
        kind = annotations.get("io.kubernetes.cri.container-type", "sandbox")
        sandbox = container
        if kind == "container":
            sandbox = annotations["io.kubernetes.cri.sandbox-id"]
        if (MAPPING / container).exists():
            raise RefusedError(f"ID {container} already in use, unique name should be provided")
        (MAPPING / container / sandbox).mkdir(parents=True)
        if kind == "container":
            if not (SBS / sandbox / "persist.json").exists():
                raise RefusedError(f"Sandbox ID ({sandbox}) does not exist")
            with self.lock(sandbox):
                self.hang_if("create")
                self.sleep(CREATE_S)
                self.add(container, sandbox, bundle, spec)
            return 0
        self.boot(sandbox, spec)
        with self.lock(sandbox):
            self.add(container, sandbox, bundle, spec)
            (SBS / sandbox / "persist.json").write_text("{}")
        return 0

    def boot(self, sandbox: str, spec: Document) -> None:
        for directory in (SBS / sandbox, VM / sandbox, SHARED / sandbox):
            directory.mkdir(parents=True)
        netns = next(
            (n.get("path") for n in spec["linux"]["namespaces"] if n["type"] == "network"), None
        )
        if netns:
            take_network(netns)
        for name, *words in (
            ("qemu-system-x86_64", "-name", f"sandbox-{sandbox}", "-daemonize"),
            (
                "kata-proxy",
                "-listen-socket",
                f"unix://{VM}/{sandbox}/proxy.sock",
                "-sandbox",
                sandbox,
            ),
        ):
            daemonize(name, *words)
        self.hang_if("boot")
        self.sleep(BOOT_S)
        wait_until((VM / sandbox / "agent").exists)

    def add(self, container: str, sandbox: str, bundle: Path, spec: Document) -> None:
        root = SHARED / sandbox / container / "rootfs"
        root.mkdir(parents=True)
        source = os.fsencode(bundle / spec["root"]["path"])
        call(libc.mount(source, os.fsencode(root), None, MS_BIND | MS_REC, None))
        process = spec["process"]
        pid = self.stand(sandbox, container, process, root, process.get("terminal", False))
        enter_cgroup(spec["linux"]["cgroupsPath"], container, pid)
        record = {"id": container, "pid": pid, "bundle": str(bundle), "root": str(root)}
        record["cgroup"] = spec["linux"]["cgroupsPath"]
        self.save(sandbox, record)
        self.leave_pid(pid)

    def stand(self, sandbox: str, key: str, process: Document, root: Path, terminal: bool) -> int:
        """A shim with our streams, or a terminal that it hands out."""
        given = [0, 1, 2]
        if terminal:
            given = [self.hand_out_terminal()]
        ask(
            sandbox,
            given,
            do="add",
            key=key,
            root=str(root),
            args=process["args"],
            env=process.get("env", []),
            cwd=process.get("cwd", "/"),
            terminal=terminal,
        )
        pid = os.fork()
        if pid == 0:
            words = ["-agent", f"unix://{VM}/{sandbox}/proxy.sock", "-container", key, sandbox]
            become("kata-shim", *words)
        return pid

    def hand_out_terminal(self) -> int:
        master, slave = pty.openpty()
        path = self.options.get("--console-socket")
        if path is None:
            raise RefusedError("cannot allocate pseudo-TTY without a console socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(path)
            socket.send_fds(connection, [b"/dev/ptmx"], [master])
        os.close(master)
        return slave

    def leave_pid(self, pid: int) -> None:
        if path := self.options.get("--pid-file"):
            Path(path).write_text(str(pid))

    # --- life

    def start(self, container: str) -> int:
        sandbox, record = self.find(container)
        with self.lock(sandbox):
            self.hang_if("start")
            if self.status(sandbox, record) != "created":
                raise RefusedError(f"Container {container} not ready or stopped, cannot be started")
            self.sleep(0.1)
            try:
                ask(sandbox, do="start", key=container)
            except FileNotFoundError:
                raise RefusedError("rpc error: exec: executable file not found in $PATH") from None
        return 0

    def state(self, container: str) -> int:
        sandbox, record = self.find(container)
        with self.lock(sandbox):
            self.hang_if("state")
            status = self.status(sandbox, record)
        kind = "pod_sandbox" if sandbox == container else "pod_container"
        answer = {
            "ociVersion": "1.0.1-dev",
            "id": container,
            "status": status,
            "pid": record["pid"],
            "bundle": record["bundle"],
            "annotations": {
                "io.katacontainers.pkg.oci.bundle_path": record["bundle"],
                "io.katacontainers.pkg.oci.container_type": kind,
            },
        }
        print(json.dumps(answer, indent=2))
        return 0

    def kill(self, container: str, number: str = "TERM") -> int:
        wanted = (
            int(number) if number.isdigit() else getattr(signal, f"SIG{number.removeprefix('SIG')}")
        )
        sandbox, record = self.find(container)
        with self.lock(sandbox):
            self.hang_if("kill")
            status = self.status(sandbox, record)
            if status not in ("created", "running", "paused"):
                if "--all" in self.options.values:
                    return 0
                raise RefusedError("container not running")
            if wanted not in (signal.SIGTERM, signal.SIGKILL):
                ask(sandbox, do="signal", key=container, signal=wanted)
                return 0
            if container == sandbox:
                self.stop_machine(sandbox, wanted)
            else:
                self.stop(sandbox, record, wanted)
        return 0

    def stop(self, sandbox: str, record: Document, number: int) -> None:
        """Signal, wait, signal harder."""
        self.hang_if("unplug")
        with contextlib.suppress(OSError):
            ask(sandbox, do="signal", key=record["id"], signal=number, whole=True)
        if not wait_until(lambda: not alive(record["pid"]), STOP_S * self.times):
            with contextlib.suppress(OSError):
                ask(sandbox, do="signal", key=record["id"], signal=signal.SIGKILL, whole=True)
            wait_until(lambda: not alive(record["pid"]), 5)
        self.sleep(0.2)

    def stop_machine(self, sandbox: str, number: int) -> None:
        others = [r for r in self.records(sandbox) if r["id"] != sandbox]
        if any(self.status(sandbox, other) == "running" for other in others):
            self.sleep(STOP_S)  # it waits for them before it uses force
        for record in [*others, *(r for r in self.records(sandbox) if r["id"] == sandbox)]:
            self.stop(sandbox, record, signal.SIGKILL)
        end_machine(sandbox)
        self.sleep(0.2)

    def records(self, sandbox: str) -> list[Document]:
        return [json.loads(file.read_text()) for file in (SBS / sandbox).glob("*/config.json")]

    def delete(self, container: str) -> int:
        force = "--force" in self.options.values or "-f" in self.options.values
        try:
            sandbox, record = self.find(container)
        except RefusedError as error:
            if force and "does not exist" in str(error):
                return 0
            raise
        with self.lock(sandbox):
            self.hang_if("delete")
            status = self.status(sandbox, record)
            if status == "running" or (status == "created" and force):
                if not force:
                    raise RefusedError(f"Container {container} is still running, cannot be deleted")
                self.sleep(STOP_S)
                if container == sandbox:
                    self.stop_machine(sandbox, signal.SIGKILL)
                else:
                    self.stop(sandbox, record, signal.SIGKILL)
            if status == "created" and not force:
                unmount(SHARED / sandbox / container / "rootfs")
                return 0  # its shim stays, and its name is taken
            unmount(SHARED / sandbox / container / "rootfs")
            remove_cgroup(record["cgroup"], container)
            for directory in (SHARED / sandbox / container, SBS / sandbox / container):
                remove(directory)
            if container == sandbox:
                end_machine(sandbox)
                for mount in (SHARED / sandbox).glob("*/rootfs"):
                    unmount(mount)
                for directory in (SHARED / sandbox, VM / sandbox):
                    remove(directory)
        if container == sandbox:
            remove(SBS / sandbox)
        remove(MAPPING / container)
        return 0

    # --- the rest

    def exec(self, container: str) -> int:
        sandbox, record = self.find(container)
        process = json.loads(Path(self.options.get("--process", "-p") or "").read_text())
        terminal = process.get("terminal", False)
        detach = "-d" in self.options.values or "--detach" in self.options.values
        key = f"{container}-{os.getpid()}"
        with self.lock(sandbox):
            self.hang_if("exec")
            if self.status(sandbox, record) not in ("created", "running"):
                raise RefusedError(f"Container {container} is not ready or running")
            self.sleep(EXEC_S)
            if detach and not terminal:
                for number in range(3):  # the shim of a detached one has nothing to read or write
                    os.dup2(os.open(os.devnull, os.O_RDWR), number)
            pid = self.stand(sandbox, key, process, Path(record["root"]), terminal)
            try:
                ask(sandbox, do="start", key=key)
            except OSError as error:
                os.kill(pid, signal.SIGKILL)
                missing = isinstance(error, FileNotFoundError)
                words = f'exec: "{process["args"][0]}": executable file not found in $PATH'
                raise RefusedError(words if missing else str(error)) from None
        self.leave_pid(pid)
        if detach:
            return 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def events(self, container: str) -> int:
        sandbox, record = self.find(container)
        with self.lock(sandbox):
            self.hang_if("events")
            if self.status(sandbox, record) != "running":
                raise RefusedError(f"container {container} is not running")
            self.sleep(0.1)
            usage = ask(sandbox, do="usage", key=container)
        memory = {"usage": {"usage": 5 << 20, "max": 6 << 20}, "cache": 1 << 20}
        memory["raw"] = {"total_inactive_file": 1 << 19, "total_rss": 3 << 20}
        data = {
            "cpu": {"usage": {"total": usage["cpu"], "percpu": [usage["cpu"]]}, "throttling": {}},
            "memory": memory,
            "pids": {"current": usage["pids"]},
            "blkio": {},
            "intel_rdt": {},
        }
        print(json.dumps({"type": "stats", "id": container, "data": data}))
        return 0

    def update(self, container: str) -> int:
        sandbox, record = self.find(container)
        wanted = json.loads(Path(self.options.get("--resources", "-r") or "").read_text())
        with self.lock(sandbox):
            self.hang_if("unplug")
            if self.status(sandbox, record) == "stopped":
                raise RefusedError(f"Container {container} not running, impossible to update")
            record["resources"] = wanted
            self.save(sandbox, record)
        return 0

    def list(self) -> int:
        print("ID  PID  STATUS  BUNDLE")
        for directory in sorted(SBS.iterdir()):
            with self.lock(directory.name):
                for record in self.records(directory.name):
                    status = self.status(directory.name, record)
                    print(record["id"], record["pid"], status, record["bundle"])
        return 0


# --- the node --------------------------------------------------------------------------------------------------------


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> bool:
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.01)
    return True


def become(name: str, *words: str) -> None:
    """Go on as another program, of that name."""
    os.execv(sys.executable, [name, "-SE", __file__, *words])


def daemonize(name: str, *words: str) -> None:
    """Start a program that belongs to nobody."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            nothing = os.open(os.devnull, os.O_RDWR)
            for number in range(3):
                os.dup2(nothing, number)
            become(name, *words)
        os._exit(0)
    os.wait()


def take_network(netns: str) -> None:
    """Look at the namespace at once: what is not there by now the machine will not have. It can't be taken twice."""
    with open(netns) as file:
        if os.fork() == 0:
            call(libc.setns(file.fileno(), CLONE_NEWNET))
            names = [name for _, name in socket.if_nameindex()]
            if "tap0_kata" in names or not [name for name in names if name != "lo"]:
                os._exit(1)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                fcntl.ioctl(control, 0x89A0, b"tap0_kata\0")  # SIOCBRADDBR
            os._exit(0)
        if os.wait()[1]:
            raise RefusedError("network: no endpoint in the namespace, or it is in use: tap0_kata")


def end_machine(sandbox: str) -> None:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{name}/cmdline").read_bytes()
                if line.startswith((b"qemu-", b"kata-proxy")) and sandbox.encode() in line:
                    os.kill(int(name), signal.SIGKILL)


def cgroup_dirs(path: str, container: str) -> list[Path]:
    parent = path.strip("/").rpartition("/")[0]
    return [
        tree / parent / f"kata_{container}"
        for tree in (CGROUPS / "memory", CGROUPS / "pids", CGROUPS)
        if (tree / "cgroup.procs").exists()
    ]


def enter_cgroup(path: str, container: str, pid: int) -> None:
    for directory in cgroup_dirs(path, container):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cgroup.procs").write_text(str(pid))


def remove_cgroup(path: str, container: str) -> None:
    for directory in cgroup_dirs(path, container):
        with contextlib.suppress(OSError):
            directory.rmdir()


def unmount(path: Path) -> None:
    libc.umount2(os.fsencode(path), MNT_DETACH)


def remove(directory: Path) -> None:
    for top, names, files in os.walk(directory, topdown=False):
        for name in files:
            Path(top, name).unlink(missing_ok=True)
        for name in names:
            Path(top, name).rmdir()
    with contextlib.suppress(FileNotFoundError):
        directory.rmdir()


def main() -> int:
    name, argv = os.path.basename(sys.orig_argv[0]), sys.argv[1:]
    if name.startswith("qemu"):
        return hypervisor(argv[1].removeprefix("sandbox-"))
    if name == "kata-proxy":
        signal.pause()
    if name == "kata-shim":
        return shim(argv[-1], argv[3])
    options = Options(argv)
    if "--version" in options.values:
        print("kata-runtime  : 1.13.0-alpha0\n   commit   : 0\n   OCI specs: 1.0.1-dev")
        return 0
    if options.command not in COMMANDS:
        print(f'Invalid command "{options.command}"', file=sys.stderr)
        return 1
    command = getattr(Runtime(options), options.command)
    try:
        return int(command(*options.words))
    except (RefusedError, OSError) as error:
        print(
            f'time="{time.time()}" level=error msg={json.dumps(str(error))} name=kata-runtime',
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
