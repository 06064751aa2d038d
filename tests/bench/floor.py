"""The delegated floor: what conmon, the OCI runtime and the CNI plugins take when the benchmark calls them itself.

No Python start, no record, no RPC: only the programs that any CRI server on these parts has to run, in the same order
and the same overlap as the daemon runs them. Bundles are prepared outside the measured time, from a spec that the
daemon itself made for such a container, so that both measure the same container.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cri_shim.host.mounts import mount_overlay, unmount
from cri_shim.host.namespaces import create_netns, remove_netns


@dataclass(frozen=True)
class Example:
    """A container that the daemon made: what a floor bundle is copied from."""

    spec: dict[str, Any]
    layers_dir: Path
    layers: tuple[str, ...]


@dataclass
class Floor:
    """Calls the delegated programs, and takes away what they made."""

    work_dir: Path
    network: dict[str, Any]
    """The network list, as in its file."""
    plugin_dirs: tuple[Path, ...]
    _made: list[str] = field(default_factory=list)

    def plugin(self, verb: str, index: int, container_id: str, netns: Path, previous: Any) -> Any:
        """One call of one plugin of the chain; its result."""
        conf = {**self.network["plugins"][index], "name": self.network["name"]}
        conf["cniVersion"] = self.network["cniVersion"]
        if previous is not None:
            conf["prevResult"] = previous
        executable = next(d / conf["type"] for d in self.plugin_dirs if (d / conf["type"]).exists())
        env = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container_id,
            "CNI_NETNS": str(netns),
            "CNI_IFNAME": "eth0",
            "CNI_PATH": ":".join(map(str, self.plugin_dirs)),
            "PATH": os.environ["PATH"],
        }
        done = subprocess.run(
            [str(executable)],
            input=json.dumps(conf).encode(),
            env=env,
            capture_output=True,
            check=True,
        )
        return json.loads(done.stdout) if done.stdout.strip() else previous

    def attach(self, container_id: str, netns: Path) -> Any:
        """CNI ADD of the whole chain; the last result."""
        result = None
        for index in range(len(self.network["plugins"])):
            result = self.plugin("ADD", index, container_id, netns, result)
        return result

    def detach(self, container_id: str, netns: Path, result: Any) -> None:
        """CNI DEL of the whole chain, backwards."""
        for index in reversed(range(len(self.network["plugins"]))):
            self.plugin("DEL", index, container_id, netns, result)

    def example(self, daemon_spec: dict[str, Any], layers_dir: Path, layers: list[str]) -> Example:
        """An example from a spec whose pod still runs: what the daemon mounts for a pod goes with the pod.

        So each bind mount gets a source of the floor's own: a directory, or a file with the same bytes.
        """
        spec = json.loads(json.dumps(daemon_spec))
        for mount in spec["mounts"]:
            if mount.get("type") != "bind":
                continue
            source = Path(mount["source"])
            own = self.work_dir / "sources" / uuid.uuid4().hex
            own.parent.mkdir(exist_ok=True)
            if source.is_dir():
                own.mkdir()
            else:
                own.write_bytes(source.read_bytes())
            mount["source"] = str(own)
        return Example(spec, layers_dir, tuple(layers))

    def bundle(self, example: Example, *, netns: Path | None, pause_pid: int | None) -> Path:
        """A bundle like the daemon's, with a root file system of its own mounted. Not part of the floor's time."""
        container_id = uuid.uuid4().hex
        bundle = self.work_dir / container_id
        for name in ("rootfs", "upper", "work", "persist"):
            (bundle / name).mkdir(parents=True)
        mount_overlay(
            bundle / "rootfs",
            layers_dir=example.layers_dir,
            lowers=example.layers,
            upper=bundle / "upper",
            work=bundle / "work",
        )
        spec = json.loads(json.dumps(example.spec))
        spec["root"]["path"] = str(bundle / "rootfs")
        spec["linux"]["cgroupsPath"] = f"/cri-shim-bench/{container_id}"
        for namespace in spec["linux"]["namespaces"]:
            if "path" in namespace:
                kind = namespace["type"]
                namespace["path"] = (
                    str(netns)
                    if kind == "network" and netns
                    else f"/proc/{pause_pid}/ns/{_NS[kind]}"
                )
        (bundle / "config.json").write_text(json.dumps(spec))
        self._made.append(container_id)
        return bundle

    def create(self, bundle: Path) -> int:
        """conmon with `create`; the container's pid."""
        container_id = bundle.name
        read_fd, write_fd = os.pipe()
        env = {"PATH": os.environ["PATH"], "_OCI_SYNCPIPE": str(write_fd)}
        subprocess.Popen(
            [
                *("conmon", "--sync", "--full-attach", "--no-sync-log", "-c", container_id),
                *("-u", container_id, "-b", str(bundle), "-p", str(bundle / "pid")),
                *(
                    "--exit-dir",
                    str(self.work_dir / "exits"),
                    "--persist-dir",
                    str(bundle / "persist"),
                ),
                *("-l", f"k8s-file:{bundle / 'log'}", "-r", shutil.which("runc") or "runc"),
                f"--runtime-arg=--root={self.work_dir / 'runc'}",
            ],
            env=env,
            pass_fds=[write_fd],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(write_fd)
        with os.fdopen(read_fd) as pipe:
            report = json.loads(pipe.readline())
        if report["pid"] <= 0:
            raise RuntimeError(f"floor: {report}")
        return int(report["pid"])

    def run(self, bundle: Path) -> int:
        """`run` without a monitor, as for a pause container; the pid of its process, which is our child then."""
        pid_file = bundle / "pid"
        self.runc(
            *("run", "--detach", "--bundle", str(bundle), "--pid-file", str(pid_file), bundle.name),
            keeps_streams=True,
        )
        return int(pid_file.read_text())

    def runc(self, *arguments: str, keeps_streams: bool = False) -> None:
        """One call of the runtime."""
        subprocess.run(
            ["runc", f"--root={self.work_dir / 'runc'}", *arguments],
            check=True,
            stdin=subprocess.DEVNULL,
            # What is left behind with a pipe would keep us waiting for the pipe's end.
            stdout=subprocess.DEVNULL if keeps_streams else subprocess.PIPE,
            stderr=subprocess.DEVNULL if keeps_streams else subprocess.PIPE,
        )

    def end(self, pid: int) -> None:
        """SIGKILL for a pause process, and wait until it has ended: ours, since the benchmark is a subreaper."""
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def kill(self, container_id: str, pid: int) -> None:
        """SIGKILL for a container's first process, and wait until its monitor has told how it ended."""
        pidfd = os.pidfd_open(pid)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [])
        os.close(pidfd)
        while not (self.work_dir / "exits" / container_id).exists():
            time.sleep(0.0002)

    def remove(self, bundle: Path) -> None:
        """Take a container away, whatever state it is in."""
        subprocess.run(
            ["runc", f"--root={self.work_dir / 'runc'}", "delete", "--force", bundle.name],
            check=False,
            capture_output=True,
        )
        self.forget(bundle)

    def forget(self, bundle: Path) -> None:
        """Take away what is left of a container that the runtime has deleted: mount and files."""
        unmount(bundle / "rootfs")
        shutil.rmtree(bundle, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            (self.work_dir / "exits" / bundle.name).unlink()


_NS = {"network": "net", "ipc": "ipc", "uts": "uts", "pid": "pid", "cgroup": "cgroup"}


def sandbox(floor: Floor, example: Example) -> tuple[float, Path, Path, int, Any]:
    """Seconds for a namespace, then ADD beside `run`; and what is to be taken away."""
    netns = Path(f"/run/netns/bench-{uuid.uuid4().hex[:16]}")
    bundle = floor.bundle(example, netns=netns, pause_pid=None)
    seconds, pid, result = start_sandbox(floor, bundle, netns)
    return seconds, bundle, netns, pid, result


def start_sandbox(floor: Floor, bundle: Path, netns: Path) -> tuple[float, int, Any]:
    """The same for a bundle that is there: seconds, the pause process, and what ADD said."""
    results: dict[str, Any] = {}
    started = time.perf_counter()
    create_netns(netns, {})
    adding = threading.Thread(
        target=lambda: results.update(cni=floor.attach(bundle.name, netns)), name="cni"
    )
    adding.start()
    pid = floor.run(bundle)
    adding.join()
    seconds = time.perf_counter() - started
    return seconds, pid, results["cni"]


def remove_sandbox(floor: Floor, bundle: Path, netns: Path, pid: int, result: Any) -> float:
    """Seconds to stop a sandbox; then it is taken away, unmeasured."""
    seconds = stop_sandbox(floor, bundle, netns, pid, result)
    floor.forget(bundle)
    return seconds


def stop_sandbox(floor: Floor, bundle: Path, netns: Path, pid: int, result: Any) -> float:
    """Seconds for DEL beside {kill and delete the pause container}, and then the namespace's removal."""
    started = time.perf_counter()
    leaving = threading.Thread(target=floor.detach, args=(bundle.name, netns, result), name="cni")
    leaving.start()
    floor.end(pid)
    floor.runc("delete", bundle.name)
    leaving.join()
    remove_netns(netns)
    return time.perf_counter() - started


def exec_true(floor: Floor, bundle: Path) -> float:
    """Seconds for a detached exec of `true`, from its start to the end of the process it leaves behind."""
    process = json.loads((bundle / "config.json").read_text())["process"]
    process["args"] = ["true"]
    (bundle / "exec.json").write_text(json.dumps(process))
    pid_file = bundle / "exec.pid"
    pid_file.unlink(missing_ok=True)
    read_fd, write_fd = os.pipe()
    started = time.perf_counter()
    subprocess.run(
        [
            *("runc", f"--root={floor.work_dir / 'runc'}", "exec", "--detach"),
            *("--process", str(bundle / "exec.json"), "--pid-file", str(pid_file), bundle.name),
        ],
        stdin=subprocess.DEVNULL,
        stdout=write_fd,
        stderr=write_fd,
        check=True,
    )
    os.close(write_fd)
    while os.read(read_fd, 4096):
        pass
    # Ours, since the benchmark is a subreaper: left to process 1, it could keep the pod's pid namespace alive.
    os.waitpid(int(pid_file.read_text()), 0)
    seconds = time.perf_counter() - started
    os.close(read_fd)
    return seconds
