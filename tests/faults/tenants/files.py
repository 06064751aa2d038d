"""Attacks by files that whoever opens or looks at them waits for."""

from __future__ import annotations

import ctypes
import os
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.sandbox.spec.accounts import MAX_READ_BY_RUNTIMES_BYTES
from tests import images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.faults.tenants.tenant import Tenant
    from tests.integration.scene import Pod

CALLS_AT_ONCE = 8
MAX_PODS, PODS_A_SECOND = 40, 4
"""Making them, and taking them away, must not take much longer than the attack."""
EXECS_EACH = 4
LARGE_REQUEST_BYTES = 1_400_000
"""An API server takes pods of 1.5 MB."""
LONG_WORD_BYTES = 131_000
MANY_WORDS = 60_000
REFUSED_PAUSE_S = 0.2
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def mount_that_never_answers(point: Path) -> Iterator[None]:
    """A FUSE file system whose server reads no request: a dead server of files. Raises OSError.

    The kernel ends the connection with the descriptor: whatever waits fails then, also when this process dies.
    """
    point.mkdir()
    server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        options = f"fd={server},rootmode=40000,user_id=0,group_id=0,allow_other"
        if _libc.mount(b"never", os.fsencode(point), b"fuse", 0, options.encode()) != 0:
            raise OSError(ctypes.get_errno(), "mounting a FUSE file system", str(point))
        yield
    finally:
        os.close(server)
        _libc.umount2(os.fsencode(point), _MNT_DETACH)


def _create(tenant: Tenant, pod: Pod, mount: api.Mount) -> None:
    config = pod.container("sleep", "1000000")
    config.mounts.append(mount)
    Path(pod.config.log_directory, config.log_path).parent.mkdir(parents=True, exist_ok=True)
    request = api.CreateContainerRequest(
        pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config
    )
    tenant.client.runtime.CreateContainer(request, timeout=tenant.left_s())


def host_paths_that_never_answer(tenant: Tenant) -> None:
    """CreateContainers with volumes on a dead server of files."""
    pod = tenant.pod()
    point = tenant.directory / "never"
    with mount_that_never_answers(point):
        tenant.begin()
        mount = api.Mount(host_path=str(point / "volume"), container_path="/volume")
        create = partial(_create, tenant, pod, mount)
        tenant.at_once(*[partial(tenant.again_and_again, create)] * CALLS_AT_ONCE)


def accounts_in_a_fifo_of_the_container(tenant: Tenant) -> None:
    """Containers that put a FIFO in place of /etc/passwd, which runtimes read for each exec."""
    pod = tenant.pod()
    script = "rm -f /etc/passwd && mkfifo /etc/passwd && touch /ready && exec sleep 1000000"
    containers = [pod.start(pod.container("sh", "-c", script)) for _ in range(CALLS_AT_ONCE)]
    tenant.begin()

    def exec_in(container: str) -> None:
        request = api.ExecSyncRequest(container_id=container, cmd=["true"], timeout=30)
        tenant.client.runtime.ExecSync(request, timeout=tenant.left_s())

    tenant.at_once(
        *[
            partial(tenant.again_and_again, partial(exec_in, container))
            for container in containers * EXECS_EACH
        ]
    )


def accounts_in_a_fifo_of_the_node(tenant: Tenant) -> None:
    """CreateContainers that have a FIFO bind-mounted on /etc/passwd."""
    _creates_that_hang(tenant, [tenant.pod()] * CALLS_AT_ONCE)


def accounts_in_a_fifo_in_many_pods(tenant: Tenant) -> None:
    """The same, one in each of many pods."""
    n_pods = min(MAX_PODS, round(tenant.seconds * PODS_A_SECOND))
    _creates_that_hang(tenant, [tenant.pod() for _ in range(n_pods)])


def _creates_that_hang(tenant: Tenant, pods: Sequence[Pod]) -> None:
    fifo = tenant.directory / "fifo"
    os.mkfifo(fifo)
    mount = api.Mount(host_path=str(fifo), container_path="/etc/passwd")
    tenant.begin()
    tenant.at_once(
        *[partial(tenant.again_and_again, partial(_create, tenant, pod, mount)) for pod in pods]
    )


def requests_that_wait(tenant: Tenant) -> None:
    """Execs and creations that hang, each of as much as a pod's specification can hold."""
    pod = tenant.pod()
    script = "rm -f /etc/passwd && mkfifo /etc/passwd && exec sleep 1000000"
    container = pod.start(pod.container("sh", "-c", script))
    fifo = tenant.directory / "fifo"
    os.mkfifo(fifo)
    words = ["true", *["x" * LONG_WORD_BYTES] * (LARGE_REQUEST_BYTES // LONG_WORD_BYTES)]
    many_words = ["true", *["x" * 23] * MANY_WORDS]
    config = pod.container(*many_words)
    config.mounts.append(api.Mount(host_path=str(fifo), container_path="/etc/passwd"))
    tenant.begin()

    def execs(command: Sequence[str]) -> None:
        request = api.ExecSyncRequest(container_id=container, cmd=command, timeout=30)
        tenant.client.runtime.ExecSync(request, timeout=tenant.left_s())

    def creates(number: int) -> None:
        own = api.ContainerConfig()
        own.CopyFrom(config)
        own.metadata.name = f"large-{number}"
        request = api.CreateContainerRequest(
            pod_sandbox_id=pod.id, config=own, sandbox_config=pod.config
        )
        tenant.client.runtime.CreateContainer(request, timeout=tenant.left_s())

    calls = [
        *[partial(execs, words)] * CALLS_AT_ONCE,
        *[partial(execs, many_words)] * CALLS_AT_ONCE,
        *[partial(creates, number) for number in range(EXECS_EACH)],
    ]
    tenant.at_once(*[partial(_again_after_a_pause, tenant, call) for call in calls])


def _again_after_a_pause(tenant: Tenant, call: Callable[[], None]) -> None:
    """As a kubelet, which does not try again at once what was refused."""
    while tenant.goes_on():
        if not tenant.tries(call):
            time.sleep(REFUSED_PAUSE_S)


def accounts_of_megabytes(tenant: Tenant) -> None:
    """CreateContainers of an image whose /etc/group is as large as it may be, which runtimes read for each."""
    name = "test.example/groups:1"
    group = images.file(
        "etc/group", (b"g:x:1:\n" * MAX_READ_BY_RUNTIMES_BYTES)[:MAX_READ_BY_RUNTIMES_BYTES]
    )
    archive = tenant.directory / "groups.tar"
    archive.write_bytes(images.oci_archive(images.layer(images.directory("etc"), group), name=name))
    tenant.client.import_image(archive)
    pod = tenant.pod()
    tenant.begin()

    def create_and_remove() -> None:
        config = pod.container("/none")
        config.image.image = name
        tenant.client.remove(tenant.client.create(pod.id, config, pod.config))

    tenant.at_once(*[partial(tenant.again_and_again, create_and_remove)] * CALLS_AT_ONCE)
    tenant.client.remove_image(name)
