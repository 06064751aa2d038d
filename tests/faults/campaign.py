"""Clients that churn pods as kubelets do and never give up, while the daemon is killed at random moments.

    python -m tests.faults.campaign [--seed N] [--kills 200] [--clients 6]

Each client drives one pod after the other through its life: run, create, start, execs, wait or stop, remove; every call
is repeated until it is answered, over as many deaths of the daemon as it takes. Whatever the daemon has acknowledged is
noted in a ledger before the next call. After each start everything in the ledger must be listed, in the state that was
told; in the end nothing at all may be left. What happened otherwise is a violation, told with the seed.
The seed decides what clients do and when the daemon dies; which call a death meets is up to the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import secrets
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import grpc

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.image.builtin import busybox_archive
from tests.harness import isolation
from tests.harness.client import Client
from tests.harness.daemon import Daemons

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness.daemon import Daemon

IMAGE = "test.example/busybox:1"
PATIENCE_S = 60.0
"""How long a client repeats one call; also how long the end may take."""
UP_S = (0.05, 1.5)
"""A daemon lives at least and at most so long."""
GRACEFUL_SHARE = 0.15
"""Of the deaths, those by request."""
T = TypeVar("T")

# What a call gets that met a death: cut off, not connected, or turned away at the door before or after the work.
_DEATH_CODES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN)
_ANSWERS_OF_THE_LIVING = ("CNI plugin", "replaced this one", "failpoint")


class ViolationError(Exception):
    """The daemon broke a promise."""


@dataclass
class Ledger:
    """What was acknowledged and not yet asked to go; threads write it, the checker reads it."""

    pods: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    """Containers that were started and do not end by themselves."""
    violations: list[str] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    interrupted: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def violated(self, what: str) -> None:
        """Note a broken promise."""
        with self._lock:
            self.violations.append(what)

    def snapshot(self) -> tuple[set[str], set[str]]:
        """Pods and running containers, as they are known now."""
        with self._lock:
            return set(self.pods), set(self.running)

    @contextlib.contextmanager
    def changed(self) -> Iterator[None]:
        """Change the sets inside."""
        with self._lock:
            yield

    def count(self, call: str, *, interrupted: bool) -> None:
        """One call ended."""
        with self._lock:
            (self.interrupted if interrupted else self.calls)[call] += 1


class Churn:
    """One client: a thread with a connection and random choices of its own."""

    def __init__(self, number: int, daemon: Daemon, ledger: Ledger, seed: int) -> None:
        self._client = Client(
            daemon.socket, log_dir=daemon.pod_log_dir, cgroup_parent=daemon.cgroup_parent
        )
        self._ledger = ledger
        self._name = f"client-{number}"
        self._random = random.Random(f"{seed}/{number}")
        self._enough = threading.Event()
        self._pods = 0
        self._thread = threading.Thread(target=self._run, name=self._name)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def end(self) -> None:
        """Finish the pod in hand, then stop."""
        self._enough.set()

    def join(self) -> None:
        """Wait for the end."""
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        while not self._enough.is_set():
            try:
                self._live_one_pod()
            except ViolationError as violation:
                self._ledger.violated(str(violation))
                return

    def _live_one_pod(self) -> None:
        self._pods += 1
        config = self._client.pod_config(
            f"{self._name}-{self._pods}", labels={"client": self._name}
        )
        config.linux.security_context.namespace_options.network = (
            api.NODE if self._random.random() < 0.2 else api.POD
        )
        pod = self._repeat("RunPodSandbox", lambda: self._client.run_pod(config))
        with self._ledger.changed():
            self._ledger.pods.add(pod)
        self._expect_only_one(pod)
        for _ in range(self._random.randint(1, 2)):
            self._live_one_container(pod, config)
        with self._ledger.changed():
            # From the first request to go on, the pod may be gone at any time.
            self._ledger.pods.discard(pod)
        if self._random.random() < 0.8:
            self._repeat("StopPodSandbox", lambda: self._client.stop_pod(pod))
        self._repeat("RemovePodSandbox", lambda: self._client.remove_pod(pod))

    def _live_one_container(self, pod: str, config: api.PodSandboxConfig) -> None:
        code = self._random.choice([None, None, 0, 1, 7, 255])
        script = "exec sleep 600" if code is None else f"sleep 0.05; exit {code}"
        wanted = self._client.container_config(IMAGE, ["sh", "-c", script])
        container = self._repeat(
            "CreateContainer", lambda: self._client.create(pod, wanted, config)
        )
        self._repeat("StartContainer", lambda: self._start(container))
        if code is not None:
            self._expect_exit(container, code)
        else:
            with self._ledger.changed():
                self._ledger.running.add(container)
            for _ in range(self._random.randint(0, 3)):
                self._exec(container)
            with self._ledger.changed():
                self._ledger.running.discard(container)
            if self._random.random() < 0.5:
                self._repeat("StopContainer", lambda: self._client.stop(container))
                self._expect_exit(container, 137)
        if self._random.random() < 0.6:
            self._repeat("RemoveContainer", lambda: self._client.remove(container))

    def _start(self, container: str) -> None:
        """Start it, unless the start whose answer was lost has had its effect."""
        status = self._client.status(container).status
        if status.state == api.CONTAINER_CREATED:
            self._client.start(container)

    def _exec(self, container: str) -> None:
        said = f"{self._name} {self._random.random()}"
        answer = self._repeat("ExecSync", lambda: self._client.exec(container, "echo", said))
        if (answer.exit_code, answer.stdout.decode()) != (0, f"{said}\n"):
            raise ViolationError(f"exec in {container}: {answer!r}")

    def _expect_exit(self, container: str, code: int) -> None:
        def status() -> api.ContainerStatus:
            return self._client.wait_exited(container, timeout_s=PATIENCE_S)

        found = self._repeat("ContainerStatus", status)
        if found.exit_code != code:
            raise ViolationError(
                f"container {container} exited with {found.exit_code} ({found.reason} {found.message}), not {code}"
            )

    def _expect_only_one(self, pod: str) -> None:
        mine = api.PodSandboxFilter(label_selector={"client": self._name})
        request = api.ListPodSandboxRequest(filter=mine)
        listed = self._repeat(
            "ListPodSandbox", lambda: self._client.runtime.ListPodSandbox(request, timeout=10)
        )
        if [item.id for item in listed.items] != [pod]:
            raise ViolationError(f"{self._name} has one pod, {pod}, and these are listed: {listed}")

    def _repeat(self, name: str, call: Callable[[], T]) -> T:
        """Call until there is an answer of a living daemon. Raises: ViolationError for a refusal."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                answer = call()
            except grpc.RpcError as error:
                self._ledger.count(name, interrupted=True)
                if not _met_a_death(error) or time.monotonic() > deadline:
                    raise ViolationError(
                        f"{self._name}: {name}: {error.code().name}: {error.details()}"
                    ) from error
                time.sleep(self._random.uniform(0.01, 0.1))
            except TimeoutError as error:
                raise ViolationError(f"{self._name}: {name}: {error}") from error
            else:
                self._ledger.count(name, interrupted=False)
                return answer


def _met_a_death(error: grpc.RpcError) -> bool:
    details = error.details() or ""
    return error.code() in _DEATH_CODES and not any(
        answer in details for answer in _ANSWERS_OF_THE_LIVING
    )


def run(daemon: Daemon, *, kills: int, clients: int, seed: int) -> Ledger:
    """Churn on a running, warm daemon until it has died `kills` times; the ledger says what went wrong."""
    ledger = Ledger()
    moments = random.Random(seed)
    churns = [Churn(number, daemon, ledger, seed) for number in range(clients)]
    for churn in churns:
        churn.start()
    try:
        for kill in range(kills):
            time.sleep(moments.uniform(*UP_S))
            if moments.random() < GRACEFUL_SHARE:
                daemon.stop()
            else:
                daemon.kill9()
            acknowledged = ledger.snapshot()
            daemon.start()
            _check(daemon, ledger, acknowledged, kill)
            if ledger.violations:
                break
    finally:
        for churn in churns:
            churn.end()
        for churn in churns:
            churn.join()
    left = [pod.id for pod in daemon.client.pods()]
    left += [container.id for container in daemon.client.containers()]
    if left and not ledger.violations:
        ledger.violated(f"every client has removed its pods, and these are listed: {left}")
    return ledger


def _check(daemon: Daemon, ledger: Ledger, before: tuple[set[str], set[str]], kill: int) -> None:
    """What was acknowledged before the death, and is not asked to go by now, is there."""
    ready = {item.id for item in daemon.client.pods() if item.state == api.SANDBOX_READY}
    running = {
        item.id for item in daemon.client.containers() if item.state == api.CONTAINER_RUNNING
    }
    now = ledger.snapshot()
    for kind, was, still, listed in zip(
        ("pod", "running container"), before, now, (ready, running), strict=True
    ):
        for lost in (was & still) - listed:
            ledger.violated(
                f"after death {kill + 1}: {kind} {lost} was acknowledged and is not there"
            )


def main() -> int:
    """A campaign of its own, on a node of its own."""
    parser = argparse.ArgumentParser(description="Kill the daemon at random moments.")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31))
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--clients", type=int, default=6)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    session = isolation.Session()
    session.claim()
    try:
        session.enter()
        with tempfile.TemporaryDirectory() as directory:
            archive = Path(directory, "busybox.tar")
            archive.write_bytes(busybox_archive(IMAGE))
            daemons = Daemons(session.token, session.namespaces)
            with daemons.without_leaks(archives=[archive]) as daemon:
                ledger = run(
                    daemon, kills=options.kills, clients=options.clients, seed=options.seed
                )
    finally:
        session.release()
    report(ledger)
    return 1 if ledger.violations else 0


def report(ledger: Ledger) -> None:
    """What was called how often, how often a death came between, and what was violated."""
    for name, count in sorted(ledger.calls.items()):
        print(f"{name:20} {count:6} answered {ledger.interrupted[name]:6} interrupted")
    for violation in ledger.violations:
        print(f"violation: {violation}")


if __name__ == "__main__":
    sys.exit(main())
