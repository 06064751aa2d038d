"""The demo's pod: each step makes one thing through the daemon's API, proves it, and returns what to show of it.

Rules:
- Nothing is taken on trust: what the daemon says is held against the log file, the inside of the pod, and the network.
- Whatever was begun is known here, so that `take_away` removes it whatever happened, also what a call that was given
  up may have made: the daemon ends such work on its own, and joins a repeated request to it.
- What was on the node before stays: an image that had the demo's name or content is left alone.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import secrets
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from cri_shim._pb.admin.v1 import admin_pb2
from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.cli.archive_stream import ArchiveStream
from cri_shim.cli.image import import_archive
from cri_shim.cli.log_lines import Written, parse_log
from cri_shim.cli.progress import size_text
from cri_shim.errors import (
    CriShimError,
    DeadlineError,
    NotReadyError,
    WrongStateError,
)
from cri_shim.image.builtin import busybox_archive
from cri_shim.paths import netns_file
from cri_shim.rpc.client import errors_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cri_shim.cli.progress import Progress
    from cri_shim.rpc.client import Client

IMAGE: Final = "localhost/cri-shim-demo:1"
NAMESPACE: Final = "cri-shim-demo"
PORT: Final = 8080
INTERFACE: Final = "eth0"
NOBODY: Final = 65534
LOG_ROOT: Final = Path("/run")
"""Not /tmp: services may have one of their own, and the daemon's monitors write here."""
GOODBYE: Final = "goodbye"
STOP_GRACE_S: Final = 10
CALL_TIMEOUT_S: Final = 60.0
POD_TIMEOUT_S: Final = 300.0
"""Longer than a plugin and a monitor are given by default, so that it is the daemon that says what hung."""
WAIT_S: Final = 10.0
"""For a line to reach the log, and for the pod's web server to listen."""
_POLL_S: Final = 0.02

# As PID 1 a shell has no default action for TERM: without the trap a stop would take its whole grace period.
SCRIPT: Final = f"""
trap 'echo {GOODBYE}; exit 0' TERM
mkdir /tmp/www && echo "$GREETING" > /tmp/www/index.html || exit 1
httpd -f -p {PORT} -h /tmp/www &
echo "$GREETING"
echo "$COMPLAINT" >&2
wait
"""
_ADDRESS: Final = re.compile(r"\binet6? (\S+)")


class DemoPod:
    """One run of the demo. Every public step returns the text to show, and raises CriShimError saying what is wrong."""

    def __init__(
        self, client: Client, progress: Progress, *, check_interrupted: Callable[[], None]
    ) -> None:
        """`check_interrupted` is called while something is awaited; what it raises ends the wait."""
        self._client = client
        self._progress = progress
        self._check_interrupted = check_interrupted
        token = secrets.token_hex(3)
        self.name = f"hello-{token}"
        self._greeting = f"hello from pod {self.name}"
        self._complaint = f"and {self.name} complains on stderr"
        self.log_dir: Path | None = None
        self.sandbox_id = ""
        self.container_id = ""
        self.ips: list[str] = []
        self.network = ""
        self._config: api.PodSandboxConfig | None = None
        self._image_is_ours = False

    # --- the steps -----------------------------------------------------------------------------------------------

    def meet_daemon(self) -> str:
        """Whether the daemon can run pods."""
        with errors_of("it does not answer as it should"):
            info = self._client.admin.Info(admin_pb2.InfoRequest(), timeout=CALL_TIMEOUT_S)
            status = self._client.runtime.Status(
                api.StatusRequest(verbose=True), timeout=CALL_TIMEOUT_S
            )
        for condition in status.status.conditions:
            if not condition.status:
                raise NotReadyError(f"{condition.type} is false: {condition.message}")
        networks = msgspec.json.decode(status.info["cni"], type=_CniInfo).networks
        self.network = networks[0] if networks else ""
        handler = info.handlers[0]
        return (
            f"cri-shim {info.version} on {self._client.socket_path}, "
            f"runs pods with {handler.name} {handler.version} on network {self.network}"
        )

    def bring_image(self) -> str:
        """Put busybox of this node there, as an image, through the daemon's import."""
        before = self._images()
        for image in before:
            if IMAGE in image.repo_tags:
                return f"{IMAGE}, {size_text(image.size)}, was here already"
        self.log_dir = Path(tempfile.mkdtemp(prefix="cri-shim-demo-", dir=LOG_ROOT))
        archive = self.log_dir / "image.tar"
        archive.write_bytes(busybox_archive(IMAGE))
        # From here on it may be there, also if the import says otherwise: that is looked at when it is taken away.
        self._image_is_ours = True
        imported = import_archive(
            self._client, ArchiveStream(archive), name="", progress=self._progress
        )
        archive.unlink()
        if any(image.id == imported[0].id for image in before):
            # The same content under another name: removing it would take that name, too.
            self._image_is_ours = False
        [size] = [image.size for image in self._images() if IMAGE in image.repo_tags]
        return f"{IMAGE}, {size_text(size)}, made of this node's busybox, no registry asked"

    def run_pod(self) -> str:
        """Run the sandbox; the pod gets its address."""
        if self.log_dir is None:
            self.log_dir = Path(tempfile.mkdtemp(prefix="cri-shim-demo-", dir=LOG_ROOT))
        self._config = self._pod_config(self.log_dir)
        self._ask_for_pod(POD_TIMEOUT_S)
        with errors_of(f"cannot ask for the status of sandbox {self.sandbox_id}"):
            status = self._client.runtime.PodSandboxStatus(
                api.PodSandboxStatusRequest(pod_sandbox_id=self.sandbox_id), timeout=CALL_TIMEOUT_S
            ).status
        if status.state != api.SANDBOX_READY:
            raise WrongStateError(f"sandbox {self.sandbox_id} is not ready right after its start")
        self.ips = [status.network.ip, *(more.ip for more in status.network.additional_ips)]
        for ip in self.ips:
            _check_address(ip)
        return f"{NAMESPACE}/{self.name} is ready with IP {', '.join(self.ips)}"

    def start_container(self) -> str:
        """Create and start the one container: nobody's, without capabilities, under the default seccomp profile."""
        assert self._config is not None  # noqa: S101 - the order of the steps
        with errors_of("cannot create the container"):
            self.container_id = self._client.runtime.CreateContainer(
                api.CreateContainerRequest(
                    pod_sandbox_id=self.sandbox_id,
                    config=self._container_config(),
                    sandbox_config=self._config,
                ),
                timeout=POD_TIMEOUT_S,
            ).container_id
        with errors_of(f"cannot start container {self.container_id}"):
            self._client.runtime.StartContainer(
                api.StartContainerRequest(container_id=self.container_id), timeout=CALL_TIMEOUT_S
            )
        self._require_running()
        return "a web server runs in it as nobody, without capabilities"

    def read_log(self) -> str:
        """Wait for what the container wrote to stand in its log file, in CRI's form, word for word."""
        expected = {Written("stdout", self._greeting), Written("stderr", self._complaint)}
        data = b""

        def is_complete() -> bool:
            nonlocal data
            data = self._log_bytes()
            written = parse_log(data)
            if len(written) < len(expected):
                self._require_running()
                return False
            if len(written) > len(expected) or set(written) != expected:
                raise CriShimError(f"the log holds other lines than the container wrote: {written}")
            return True

        self._wait_for(is_complete, f"its lines did not reach {self._log_file()}")
        return data.decode().rstrip("\n")

    def exec_inside(self) -> str:
        """Run a command in the container: it must see the pod's own name and address."""
        said = self._exec("sh", "-c", f"hostname && id -u && ip addr show dev {INTERFACE}")
        hostname, uid, *rest = said.splitlines() or [""]
        if hostname != self.name or uid != str(NOBODY):
            raise CriShimError(
                f"it sees host name {hostname!r} and user {uid!r}, not {self.name!r} and '{NOBODY}'"
            )
        addresses = [ipaddress.ip_interface(found) for found in _ADDRESS.findall("\n".join(rest))]
        inside = {str(address.ip): str(address) for address in addresses}
        if missing := [ip for ip in self.ips if ip not in inside]:
            raise CriShimError(
                f"the daemon says {', '.join(missing)}, but {INTERFACE} of the pod has "
                f"{', '.join(inside.values()) or 'no address'}"
            )
        shown = ", ".join(inside[ip] for ip in self.ips)
        return f"inside, the host name is {hostname} and {INTERFACE} has {shown}"

    def reach_pod(self) -> str:
        """Fetch the pod's page from this node, over the pod network, as the kubelet's probes do."""
        answer = ""

        def is_served() -> bool:
            nonlocal answer
            try:
                answer = _fetch(self.ips[0])
            except ConnectionRefusedError:
                self._require_running()
                return False  # not listening yet
            except (OSError, http.client.HTTPException) as error:
                raise CriShimError(f"no answer from {self._url}: {error}") from error
            return True

        self._wait_for(is_served, f"nothing listens at {self._url}")
        if answer != self._greeting:
            raise CriShimError(f"{self._url} answered {answer[:200]!r}, which the pod never said")
        return f"{self._url} answers this node: {answer}"

    def read_stats(self) -> str:
        """What the container uses, from its cgroup and its writable layer."""
        with errors_of("cannot read the container's statistics"):
            stats = self._client.runtime.ContainerStats(
                api.ContainerStatsRequest(container_id=self.container_id), timeout=CALL_TIMEOUT_S
            ).stats
        cpu_ns = stats.cpu.usage_core_nano_seconds.value
        memory = stats.memory.working_set_bytes.value
        if not cpu_ns or not memory:
            raise CriShimError(
                f"a running container can't have used {cpu_ns} ns of CPU and {memory} bytes of memory"
            )
        layer = stats.writable_layer
        return (
            f"CPU {cpu_ns / 1e6:.1f} ms, memory {size_text(memory)}, "
            f"{size_text(layer.used_bytes.value)} written in {layer.inodes_used.value} files"
        )

    def stop_and_remove(self) -> str:
        """Stop the container gracefully, remove everything, and see that nothing of it is left."""
        with errors_of(f"cannot stop container {self.container_id}"):
            self._client.runtime.StopContainer(
                api.StopContainerRequest(container_id=self.container_id, timeout=STOP_GRACE_S),
                timeout=CALL_TIMEOUT_S,
            )
        status = self._container_status()
        if status.state != api.CONTAINER_EXITED or status.exit_code != 0:
            raise CriShimError(
                f"the stopped container says exit code {status.exit_code} ({status.reason}), "
                "but it leaves with 0 when it is asked to stop"
            )
        if Written("stdout", GOODBYE) not in parse_log(self._log_bytes()):
            raise CriShimError(f"its last line is not in {self._log_file()}")
        sandbox_id = self.sandbox_id
        self.take_away()
        self._require_gone(sandbox_id)
        return "the container left with exit code 0; pod, network, image and log are gone"

    # --- taking away ---------------------------------------------------------------------------------------------

    def take_away(self) -> None:
        """Remove everything that was made. Raises the first failure after all was tried; may be called again."""
        failure: CriShimError | None = None
        for remove in (self._remove_pod, self._remove_image, self._remove_log):
            try:
                remove()
            except CriShimError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def left_behind(self) -> list[str]:
        """Commands that take away what there still is, as far as is known."""
        commands = []
        if self.sandbox_id:
            commands.append(f"crictl rmp -f {self.sandbox_id[:13]}")
        elif self._config is not None:
            commands.append(f"crictl rmp -f $(crictl pods -q --name {self.name})")
        if self._image_is_ours:
            commands.append(f"crictl rmi {IMAGE}")
        if self.log_dir is not None:
            commands.append(f"rm -r {self.log_dir}")
        return commands

    def _remove_pod(self) -> None:
        if self._config is None:
            return
        if not self.sandbox_id:
            # A call that was given up may have made it. The same request again joins that work, and tells the ID.
            try:
                self._ask_for_pod(CALL_TIMEOUT_S)
            except DeadlineError:
                raise
            except CriShimError:
                self._config = None  # it could not be made, and the daemon undid what there was
                return
        with errors_of(f"cannot remove sandbox {self.sandbox_id}"):
            # Stopping it by a call of its own tells what the network's plugins say.
            self._client.runtime.StopPodSandbox(
                api.StopPodSandboxRequest(pod_sandbox_id=self.sandbox_id), timeout=POD_TIMEOUT_S
            )
            self._client.runtime.RemovePodSandbox(
                api.RemovePodSandboxRequest(pod_sandbox_id=self.sandbox_id), timeout=POD_TIMEOUT_S
            )
        self._config, self.sandbox_id, self.container_id = None, "", ""

    def _remove_image(self) -> None:
        if not self._image_is_ours:
            return
        with errors_of(f"cannot remove image {IMAGE}"):
            self._client.images.RemoveImage(
                api.RemoveImageRequest(image=api.ImageSpec(image=IMAGE)), timeout=CALL_TIMEOUT_S
            )
        self._image_is_ours = False

    def _remove_log(self) -> None:
        if self.log_dir is None:
            return
        try:
            shutil.rmtree(self.log_dir)
        except OSError as error:
            raise CriShimError(f"cannot remove {self.log_dir}: {error.strerror}") from error
        self.log_dir = None

    def _require_gone(self, sandbox_id: str) -> None:
        with errors_of("cannot list what is left"):
            pods = self._client.runtime.ListPodSandbox(
                api.ListPodSandboxRequest(filter=api.PodSandboxFilter(id=sandbox_id)),
                timeout=CALL_TIMEOUT_S,
            ).items
            containers = self._client.runtime.ListContainers(
                api.ListContainersRequest(filter=api.ContainerFilter(pod_sandbox_id=sandbox_id)),
                timeout=CALL_TIMEOUT_S,
            ).containers
        left = [f"sandbox {pod.id}" for pod in pods]
        left += [f"container {container.id}" for container in containers]
        if netns_file(sandbox_id).exists():
            left.append(f"network namespace {netns_file(sandbox_id)}")
        if left:
            raise CriShimError(f"the daemon removed the pod, but there still is {', '.join(left)}")

    # --- calls ---------------------------------------------------------------------------------------------------

    def _ask_for_pod(self, timeout_s: float) -> None:
        with errors_of("cannot run the pod"):
            self.sandbox_id = self._client.runtime.RunPodSandbox(
                api.RunPodSandboxRequest(config=self._config), timeout=timeout_s
            ).pod_sandbox_id

    def _images(self) -> Sequence[api.Image]:
        with errors_of("cannot list images"):
            return self._client.images.ListImages(
                api.ListImagesRequest(), timeout=CALL_TIMEOUT_S
            ).images

    def _container_status(self) -> api.ContainerStatus:
        with errors_of(f"cannot ask for the status of container {self.container_id}"):
            return self._client.runtime.ContainerStatus(
                api.ContainerStatusRequest(container_id=self.container_id), timeout=CALL_TIMEOUT_S
            ).status

    def _require_running(self) -> None:
        status = self._container_status()
        if status.state == api.CONTAINER_RUNNING:
            return
        said = "; ".join(line.text for line in parse_log(self._log_bytes())[-3:])
        raise WrongStateError(
            f"container {self.container_id} ended with exit code {status.exit_code} "
            f"({status.reason} {status.message})".rstrip() + f"; it wrote: {said or 'nothing'}"
        )

    def _exec(self, *command: str) -> str:
        with errors_of("cannot run a command in the container"):
            answer = self._client.runtime.ExecSync(
                api.ExecSyncRequest(container_id=self.container_id, cmd=command, timeout=10),
                timeout=CALL_TIMEOUT_S,
            )
        if answer.exit_code != 0:
            said = answer.stderr.decode(errors="replace").strip()
            raise CriShimError(f"{command} ended with exit code {answer.exit_code}: {said}")
        return answer.stdout.decode(errors="replace")

    def _wait_for(self, is_done: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not is_done():
            self._check_interrupted()
            if time.monotonic() > deadline:
                raise DeadlineError(f"{otherwise} within {WAIT_S:g} s")
            time.sleep(_POLL_S)

    # --- what is asked for ---------------------------------------------------------------------------------------

    def _pod_config(self, log_dir: Path) -> api.PodSandboxConfig:
        return api.PodSandboxConfig(
            metadata=api.PodSandboxMetadata(name=self.name, namespace=NAMESPACE, uid=self.name),
            hostname=self.name,
            log_directory=str(log_dir),
            labels={"app": NAMESPACE},
            linux=api.LinuxPodSandboxConfig(
                security_context=api.LinuxSandboxSecurityContext(
                    seccomp=api.SecurityProfile(profile_type=api.SecurityProfile.RuntimeDefault)
                )
            ),
        )

    def _container_config(self) -> api.ContainerConfig:
        return api.ContainerConfig(
            metadata=api.ContainerMetadata(name="hello"),
            image=api.ImageSpec(image=IMAGE),
            command=["sh", "-c", SCRIPT],
            envs=[
                api.KeyValue(key="GREETING", value=self._greeting.encode()),
                api.KeyValue(key="COMPLAINT", value=self._complaint.encode()),
            ],
            log_path=self._log_name,
            labels={"app": NAMESPACE},
            linux=api.LinuxContainerConfig(
                security_context=api.LinuxContainerSecurityContext(
                    run_as_user=api.Int64Value(value=NOBODY),
                    run_as_group=api.Int64Value(value=NOBODY),
                    capabilities=api.Capability(drop_capabilities=["ALL"]),
                    no_new_privs=True,
                    seccomp=api.SecurityProfile(profile_type=api.SecurityProfile.RuntimeDefault),
                )
            ),
        )

    @property
    def _log_name(self) -> str:
        return "hello/0.log"

    @property
    def _url(self) -> str:
        return f"http://{_in_url(self.ips[0])}:{PORT}/"

    def _log_file(self) -> Path:
        assert self.log_dir is not None  # noqa: S101 - the order of the steps
        return self.log_dir / self._log_name

    def _log_bytes(self) -> bytes:
        try:
            return self._log_file().read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise CriShimError(f"cannot read {self._log_file()}: {error.strerror}") from error
