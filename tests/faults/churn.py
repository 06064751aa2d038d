"""One client of a campaign: it repeats each call over as many deaths as it takes, and notes the answers."""

from __future__ import annotations

import json
import random
import threading
import time
from typing import TYPE_CHECKING, TypeVar

import grpc

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.sandbox.network.annotations import NETWORKS
from tests.faults.ledger import ViolationError
from tests.faults.served_images import WHOLE
from tests.harness.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.faults.ledger import Ledger
    from tests.faults.served_images import ServedImages
    from tests.harness.daemon import Daemon

IMAGE = "test.example/busybox:1"
PATIENCE_S = 60.0
"""How long a client repeats one call; also how long the end may take."""
HASTE_S = 0.05
"""How long a client waits for a pull that it gives up on; the pull goes on without it."""
T = TypeVar("T")

# What a call gets that met a death: cut off, not connected, or turned away at the door before or after the work.
_DEATH_CODES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN)
_ANSWERS_OF_THE_LIVING = ("CNI plugin", "RegistryUnavailable", "replaced this one", "failpoint")


class Churn:
    """One client: a thread with a connection and random choices of its own."""

    def __init__(
        self,
        number: int,
        daemon: Daemon,
        ledger: Ledger,
        served: ServedImages,
        network: str,
        seed: int,
        handlers: Sequence[str] = (),
    ) -> None:
        """Some pods have one of `handlers`, which give them kernels of their own; the others the default one."""
        self._client = Client(
            daemon.socket, log_dir=daemon.pod_log_dir, cgroup_parent=daemon.cgroup_parent
        )
        self._ledger = ledger
        self._name = f"client-{number}"
        self._random = random.Random(f"{seed}/{number}")
        self._enough = threading.Event()
        self._pods = 0
        self._network = network
        self._handlers = handlers
        self._own = served.own[number]
        self._contended = served.contended
        self._pulled: dict[str, str] = {}
        """IDs of the own images that are there, by reference."""
        self._thread = threading.Thread(target=self._run, name=self._name)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def end(self) -> None:
        """Finish the pod in hand, remove the images, then stop."""
        self._enough.set()

    def join(self) -> None:
        """Wait for the end."""
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        try:
            while not self._enough.is_set():
                self._live_one_pod()
            for name in list(self._pulled):
                self._remove_image(name)
            self._repeat("RemoveImage", lambda: self._client.remove_image(self._contended))
        except ViolationError as violation:
            self._ledger.violated(str(violation))

    def _live_one_pod(self) -> None:
        self._pods += 1
        config = self._client.pod_config(
            f"{self._name}-{self._pods}", labels={"client": self._name}
        )
        handler = (
            self._random.choice(self._handlers) if self._handlers and self._chance(0.4) else ""
        )
        config.linux.security_context.namespace_options.network = (
            api.NODE if self._random.random() < 0.2 and not handler else api.POD
        )
        if not config.linux.security_context.namespace_options.network and self._chance(0.3):
            config.annotations[NETWORKS] = json.dumps([{"name": self._network}])
        pod = self._repeat("RunPodSandbox", lambda: self._client.run_pod(config, handler=handler))
        with self._ledger.changed():
            self._ledger.pods.add(pod)
        self._expect_only_one(pod)
        for _ in range(self._random.randint(1, 2)):
            self._live_one_container(pod, config, self._random.choice([IMAGE, *self._pulled]))
        for _ in range(self._random.randint(1, 3)):
            self._change_own_images(pod, config)
        if self._random.random() < 0.3:
            self._contend(pod, config)
        with self._ledger.changed():
            # From the first request to go on, the pod may be gone at any time.
            self._ledger.pods.discard(pod)
        if self._random.random() < 0.8:
            self._repeat("StopPodSandbox", lambda: self._client.stop_pod(pod))
        self._repeat("RemovePodSandbox", lambda: self._client.remove_pod(pod))

    def _live_one_container(self, pod: str, config: api.PodSandboxConfig, image: str) -> None:
        code = self._random.choice([None, None, 0, 1, 7, 255])
        script = "exec sleep 600" if code is None else f"sleep 0.05; exit {code}"
        wanted = self._client.container_config(
            image, ["sh", "-c", script if image == IMAGE else WHOLE + script]
        )

        if self._chance(0.3):
            volume = api.Mount(
                container_path="/volume", image=api.ImageSpec(image=IMAGE), readonly=True
            )
            wanted.mounts.append(volume)

        def create() -> str | None:
            try:
                return self._client.create(pod, wanted, config)
            except grpc.RpcError as error:
                # Only what others remove, too, may be gone.
                if image == self._contended and error.code() is grpc.StatusCode.NOT_FOUND:
                    return None
                raise

        container = self._repeat("CreateContainer", create)
        if container is not None:
            self._use_container(container, code, image)

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _use_container(self, container: str, code: int | None, image: str) -> None:
        self._repeat("StartContainer", lambda: self._start(container))
        if code is not None:
            self._expect_exit(container, code)
        else:
            with self._ledger.changed():
                self._ledger.running.add(container)
            if image in self._pulled and self._random.random() < 0.2:
                # Its layers stay for the container, and go with it.
                self._remove_image(image)
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

    def _change_own_images(self, pod: str, config: api.PodSandboxConfig) -> None:
        name = self._random.choice(self._own)
        if name not in self._pulled or self._random.random() < 0.3:
            self._pull(name, pod, config)
            if self._random.random() < 0.6:
                self._live_one_container(pod, config, name)
        elif self._random.random() < 0.8:
            self._remove_image(name)

    def _pull(self, name: str, pod: str, config: api.PodSandboxConfig) -> None:
        """Have it here, and in the ledger; what a pull without an answer has left is looked at first."""
        known = self._pulled.get(name)
        hasty = known is None and self._random.random() < 0.2
        tried = False

        def pull_unless_it_is_there() -> str | None:
            nonlocal tried, hasty
            if tried and known is None and self._client.image_id(name):
                return None
            tried = True
            if hasty:
                hasty = False
                self._client.give_up_pull(name, after_s=HASTE_S)
                if self._client.image_id(name):
                    return None
            return self._client.pull(name)

        image_id = self._repeat("PullImage", pull_unless_it_is_there)
        if image_id is None:
            with self._ledger.changed():
                self._ledger.pulls_found_whole += 1
            self._live_one_container(pod, config, name)
            image_id = self._repeat("PullImage", lambda: self._client.pull(name))
        if known not in (None, image_id):
            raise ViolationError(f"image {name} was {known} and is {image_id}")
        self._pulled[name] = image_id
        with self._ledger.changed():
            self._ledger.images.add((name, image_id))

    def _remove_image(self, name: str) -> None:
        with self._ledger.changed():
            self._ledger.images.discard((name, self._pulled.pop(name)))
        self._repeat("RemoveImage", lambda: self._client.remove_image(name))
        left = self._repeat("ImageStatus", lambda: self._client.image_id(name))
        if left is not None:
            raise ViolationError(f"image {name} was removed and is there, as {left}")

    def _contend(self, pod: str, config: api.PodSandboxConfig) -> None:
        """Pull or remove what all others pull and remove, too."""
        name = self._contended
        if self._random.random() < 0.6:
            self._repeat("PullImage", lambda: self._client.pull(name))
            self._live_one_container(pod, config, name)
        else:
            self._repeat("RemoveImage", lambda: self._client.remove_image(name))

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
                connected = "failed to connect" not in (error.details() or "")
                self._ledger.count(name, interrupted=True, cut_off=connected)
                if not _met_a_death(error) or time.monotonic() > deadline:
                    raise ViolationError(
                        f"{self._name}: {name}: {error.code().name}: {error.details()}"
                    ) from error
                time.sleep(self._random.uniform(0.01, 0.1))
            except TimeoutError as error:
                raise ViolationError(f"{self._name}: {name}: {error}") from error
            else:
                self._ledger.count(name)
                return answer


def _met_a_death(error: grpc.RpcError) -> bool:
    details = error.details() or ""
    return error.code() in _DEATH_CODES and not any(
        answer in details for answer in _ANSWERS_OF_THE_LIVING
    )
