"""Who attacks: a client of its own, pods of its own, and a time after which it is enough."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import grpc

from tests.harness.client import Client
from tests.integration.scene import Pod

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    from cri_shim._pb.cri.v1 import api_pb2 as api
    from tests.harness.daemon import Daemon

LAST_CALL_S = 1.0
"""A call that is made at the very end is given up after so long."""


class Tenant:
    """One tenant of a node, for as long as it is open; at its end its pods are removed."""

    def __init__(self, daemon: Daemon, image: str, directory: Path, seconds: float) -> None:
        """`directory` is empty, and goes with the daemon's."""
        self.daemon = daemon
        self.image = image
        self.directory = directory
        self.seconds = seconds
        self.client = Client(
            daemon.socket, log_dir=daemon.pod_log_dir, cgroup_parent=daemon.cgroup_parent
        )
        self.answers: list[str] = []
        """What its calls were answered: "OK", or code and text."""
        self._end_s = 0.0
        self._pods: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            for pod in self._pods:
                self.client.stop_pod(pod)
                self.client.remove_pod(pod)
        finally:
            self.client.close()

    def begin(self) -> None:
        """Its time runs from here; what went before was preparation."""
        self._end_s = time.monotonic() + self.seconds

    def goes_on(self) -> bool:
        """Whether there is time left."""
        return time.monotonic() < self._end_s

    def left_s(self) -> float:
        """A deadline for a call."""
        return max(self._end_s - time.monotonic(), LAST_CALL_S)

    def config(self, *, host_ports: Mapping[int, int] | None = None) -> api.PodSandboxConfig:
        """Of a pod; other tenants have the same names, but not this namespace."""
        return self.client.pod_config(namespace="tenant", host_ports=host_ports)

    def pod(self, *, host_ports: Mapping[int, int] | None = None) -> Pod:
        """A pod of its own."""
        config = self.config(host_ports=host_ports)
        pod = Pod.run(self.client, self.image, config)
        self._pods.append(pod.id)
        return pod

    def tries(self, call: Callable[[], object]) -> bool:
        """Make a call that may be refused; whether it was not."""
        try:
            call()
        except grpc.RpcError as error:
            self.answers.append(f"{error.code().name}: {error.details()}"[:300])
            return False
        self.answers.append("OK")
        return True

    def at_once(self, *works: Callable[[], object]) -> None:
        """Each in a thread, to the end of all."""
        threads = [threading.Thread(target=work, name="tenant") for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def again_and_again(self, call: Callable[[], object]) -> None:
        """`tries` while there is time."""
        while self.goes_on():
            self.tries(call)


@dataclass(frozen=True)
class Attack:
    """One way to hold up a node."""

    run: Callable[[Tenant], None]
    """Prepares, begins the tenant's time, and returns when it is over."""
    sessions: int = 0
    """So many streaming sessions at one time."""
    cores: float = 0.0
    """What its containers compute meanwhile, which an honest tenant may as well."""
