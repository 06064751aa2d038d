"""Runs a real daemon with its own directories, socket, ports, network and cgroup parent.

Everything it is given carries the session's token and a number, so that `leaks` can tell what is its own and
`isolation` can take it away whatever happened. Paths stay short: a socket's path has 108 bytes, and the monitors'
attach sockets stand below a directory named by an ID of 64.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.harness import isolation, leaks, node
from tests.harness.client import Client
from tests.harness.slowness import SLOWNESS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

CHECKOUT = Path(__file__).parents[2]
READY_S = 30.0 * SLOWNESS
STOP_S = 30.0 * SLOWNESS
LOG_TAIL_LINES = 40
_numbers = itertools.count(1)


class DaemonError(Exception):
    """The daemon did not start, stop or become ready as expected. The message ends with its log."""


class Daemon:
    """A configured daemon, running or not. Call `start`, and `destroy` in the end."""

    def __init__(
        self,
        token: str,
        *,
        settings: Mapping[str, object] | None = None,
        conflist: Mapping[str, object] | None = None,
    ) -> None:
        """Write its configuration. `settings` are merged over the harness's, `conflist` replaces its network."""
        number = next(_numbers)
        self.name = f"{token}-{number:03d}"
        self.tree = isolation.disk_dir() / self.name
        self.state = isolation.LOCK_DIR / self.name
        self.root = self.tree / "root"
        self.socket = self.state / "cri-shim.sock"
        self.config_file = self.tree / "config.yaml"
        self.log_file = self.tree / "daemon.log"
        self.pod_log_dir = self.tree / "pods"
        self.conf_dir = self.tree / "net.d"
        self.lease_dir = self.tree / "leases"
        self.tmp_dir = self.tree / "tmp"
        """The runtimes' temporary files, in their own directory to distinguish them from those of other programs."""
        self.bridge = self.name
        by_systemd = (settings or {}).get("cgroup_driver") == "systemd"
        self.cgroup_parent = f"{self.name}.slice" if by_systemd else f"/{self.name}"
        self.metrics_port = _free_port()
        self.subnet = f"10.{64 + number // 64 % 64}.{number % 64 * 4}.0/22"  # 250 pods and more
        self.module = "cri_shim"
        """The program that is started, unless a failpoint is requested."""
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Client | None = None
        for directory in (self.tree, self.root, self.pod_log_dir, self.conf_dir, self.tmp_dir):
            directory.mkdir(mode=0o700, parents=True)
        self.write_conflist(conflist if conflist is not None else self.default_conflist())
        self._settings = _merged(self._default_settings(), settings or {})
        self.config_file.write_text(yaml.safe_dump(self._settings))

    # --- life ----------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """The daemon's process, while it runs."""
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if running and self._process is not None else None

    @property
    def client(self) -> Client:
        """A connection that lives until the daemon is destroyed."""
        if self._client is None:
            self._client = Client(
                self.socket, log_dir=self.pod_log_dir, cgroup_parent=self.cgroup_parent
            )
        return self._client

    def start(self, *, failpoint: str = "", wait: bool = True) -> None:
        """Start it, and wait until it says that it is ready.

        `failpoint` is what `failpoint_daemon` takes after --at. Raises: DaemonError with the log's end.
        """
        if self.pid is not None:
            raise DaemonError(f"{self.name} runs already")
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                # Dies with the test process: an aborted run must not leave daemons that create more.
                ["setpriv", "--pdeathsig", "KILL", *self.command_line(failpoint)],
                cwd=self.tree,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if wait:
            self.wait_ready()

    def command_line(self, failpoint: str = "") -> list[str]:
        """The argv of the daemon."""
        serve = ["serve", "--config", str(self.config_file)]
        if failpoint:
            return [
                sys.executable,
                "-m",
                "tests.harness.failpoint_daemon",
                "--at",
                failpoint,
                *serve,
            ]
        return [sys.executable, "-m", self.module, *serve]

    def wait_ready(self, *, timeout_s: float = READY_S) -> None:
        """Wait for the health service to say SERVING. Raises: DaemonError."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            process = self._process
            if process is None or process.poll() is not None:
                code = None if process is None else process.returncode
                raise DaemonError(
                    f"{self.name} ended with status {code} before it was ready\n{self.log_tail()}"
                )
            if self.socket.exists() and self.client.is_serving():
                return
            time.sleep(0.02)
        raise DaemonError(f"{self.name} is not ready after {timeout_s} s\n{self.log_tail()}")

    def wait_ended(self, *, timeout_s: float = STOP_S) -> int:
        """Wait for the process to end. Returns its status, negative for a signal. Raises: DaemonError."""
        if self._process is None:
            raise DaemonError(f"{self.name} was never started")
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise DaemonError(
                f"{self.name} still runs after {timeout_s} s\n{self.log_tail()}"
            ) from None

    def kill9(self) -> None:
        """Kill it with SIGKILL, as in a crash, and wait for its end. Containers keep running."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait_ended()

    def stop(self) -> int:
        """Send SIGTERM and wait for its end. Returns the exit status. Containers keep running."""
        if self.pid is None:
            return 0
        os.kill(self.pid, signal.SIGTERM)
        try:
            return self.wait_ended()
        except DaemonError:
            self.kill9()
            raise

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def reload(self) -> None:
        """SIGHUP."""
        if self.pid is None:
            raise DaemonError(f"{self.name} does not run")
        os.kill(self.pid, signal.SIGHUP)

    def warm_up(self, archives: Sequence[Path]) -> None:
        """Import images, run a pod with a container of each, and remove it: the first creates permanent resources."""
        client = self.client
        images = [image for archive in archives for image in client.import_image(archive)]
        config = client.pod_config("warm-up", host_ports={_free_port(): 80})
        pod = client.run_pod(config)
        for image in images:
            client.run(pod, client.container_config(image.names[0], ["sleep", "60"]), config)
        client.remove_all_pods()

    def is_own_directory(self, leak: leaks.Leak) -> bool:
        """Whether this is a permanent resource that the first pod creates: the bridge, or the parent cgroup of pods."""
        if leak.kind == "cgroup":
            last = leak.name.rpartition("/")[2]
            above = last.endswith(".slice") and self.name.startswith(last.removesuffix(".slice"))
            return above or leak.name.endswith(self.cgroup_parent)
        return leak.kind == "link" and leak.name == self.bridge

    def destroy(self) -> None:
        """Kill it and remove everything that it owns, in whatever state it is."""
        if self._client is not None:
            self._client.close()
            self._client = None
        self.kill9()
        isolation.remove_all(self.name)
        subprocess.run(["ip", "link", "delete", self.bridge], capture_output=True, check=False)

    # --- looking at it -------------------------------------------------------------------------------------------

    def log(self) -> str:
        """Everything that it wrote to standard error and output since its first start."""
        try:
            return self.log_file.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def log_tail(self) -> str:
        """The log's last lines."""
        return "\n".join(self.log().splitlines()[-LOG_TAIL_LINES:])

    def cli(
        self, *arguments: str, check: bool = True, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run `cri-shim COMMAND --config FILE ...` against it; the command comes first in `arguments`."""
        done = subprocess.run(
            [sys.executable, "-m", "cri_shim", *arguments, "--config", str(self.config_file)],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode != 0:
            raise DaemonError(
                f"cri-shim {' '.join(arguments)}: status {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    # --- its configuration ---------------------------------------------------------------------------------------

    def write_settings(self, settings: Mapping[str, object]) -> None:
        """Merge `settings` into the configuration file; applies from the next start or reload on."""
        self._settings = _merged(self._settings, settings)
        self.config_file.write_text(yaml.safe_dump(self._settings))

    @contextmanager
    def changed_settings(self, settings: Mapping[str, object]) -> Iterator[None]:
        """As `write_settings`, for the block."""
        before = self._settings
        self.write_settings(settings)
        try:
            yield
        finally:
            self._settings = before
            self.config_file.write_text(yaml.safe_dump(before))

    def write_conflist(self, conflist: Mapping[str, object]) -> None:
        """Replace the network configuration, atomically."""
        unfinished = self.conf_dir / "10-net.unfinished"
        unfinished.write_text(json.dumps(conflist, indent=1))
        unfinished.rename(self.conf_dir / "10-net.conflist")

    def default_conflist(self) -> dict[str, Any]:
        """A network with its own bridge and addresses, and host ports."""
        return {
            "cniVersion": "1.0.0",
            "name": self.name,
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": self.bridge,
                    "isGateway": True,
                    "ipMasq": True,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": str(self.lease_dir),
                        "ranges": [[{"subnet": self.subnet}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }

    def _default_settings(self) -> dict[str, Any]:
        return {
            "root": str(self.root),
            "state": str(self.state),
            "listen": [f"unix://{self.socket}"],
            "cgroup_driver": "cgroupfs",
            "log": {"level": "debug", "format": "json"},
            "metrics": {"address": f"127.0.0.1:{self.metrics_port}"},
            "streaming": {"port": 0},
            "runtime": {
                "handlers": {
                    name: {"path": name, "env": {"TMPDIR": str(self.tmp_dir)}}
                    for name in ("runc", "crun")
                }
            },
            "sandbox": {"cgroup_parent": self.cgroup_parent},
            "cni": {"conf_dir": str(self.conf_dir), "timeout": f"{20 * SLOWNESS:g}s"},
            "stats": {"cache": "0s"},
        }


class Daemons:
    """The daemons of a test session. `leaks.Scope` gets their directories and processes from it."""

    def __init__(self, token: str, namespaces: frozenset[str]) -> None:
        self._token = token
        self._namespaces = namespaces
        self._all: list[Daemon] = []

    def create(
        self,
        *,
        settings: Mapping[str, object] | None = None,
        conflist: Mapping[str, object] | None = None,
    ) -> Daemon:
        """A new one, not started."""
        daemon = Daemon(self._token, settings=settings, conflist=conflist)
        self._all.append(daemon)
        return daemon

    def destroy(self, daemon: Daemon) -> None:
        """Destroy it, and forget it."""
        daemon.destroy()
        self._all.remove(daemon)

    def scope(self) -> leaks.Scope:
        """The scope of a snapshot."""
        return leaks.Scope(
            self._token,
            self._namespaces,
            trees=lambda: [tree for d in self._all for tree in (d.root, d.state, d.lease_dir)],
            daemons=lambda: {d.name: d.pid for d in self._all if d.pid is not None},
        )

    @contextmanager
    def without_leaks(
        self,
        *,
        settings: Mapping[str, object] | None = None,
        conflist: Mapping[str, object] | None = None,
        archives: Sequence[Path] = (),
    ) -> Iterator[Daemon]:
        """A started daemon for tests that kill, stop or start it, with the images of `archives`.

        At the end it is started if need be, so that its recovery has had its chance, its pods are removed by their IDs,
        and it is stopped: nothing but its configuration, images and empty directories may be left. Raises: LeakError.
        """
        scope = self.scope()
        earlier = leaks.Snapshot.take(scope)
        daemon = self.create(settings=settings, conflist=conflist)
        try:
            daemon.start()
            daemon.warm_up(archives)
            at_first = leaks.Snapshot.take(scope)
            yield daemon
            if daemon.pid is None:
                daemon.start()
            daemon.client.remove_all_pods()
            status = daemon.stop()
            found = leaks.leaks_since(
                earlier.with_kinds_of(at_first, *leaks.FILE_KINDS, leaks.OWN_DESCRIPTORS),
                scope,
                allowed=daemon.is_own_directory,
            )
        finally:
            self.destroy(daemon)
        if found:
            raise leaks.LeakError(found)
        if status != 0:
            raise DaemonError(f"{daemon.name} ended with status {status} when it was asked to stop")


def environment() -> dict[str, str]:
    """The environment of a daemon: PATH with the tools, and this checkout to import."""
    return {"PATH": node.search_path(), "PYTHONPATH": str(CHECKOUT), "LANG": "C.UTF-8"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result
