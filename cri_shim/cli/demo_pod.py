"""Creates and removes the demo's objects on the node: log directory, image, sandbox, container.

Rules:
- An object is noted before the call that creates it, so that `take_away` removes it also after a failed call.
- Objects that existed before are not touched: an image with the demo's name or content stays.
- A call that timed out may still create the pod, since the daemon completes it. A repeated request joins that work.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.cli import demo_requests as requests
from cri_shim.cli.archive_stream import ArchiveStream
from cri_shim.cli.image import import_archive
from cri_shim.cli.image_daemon import DaemonImages
from cri_shim.errors import CriShimError, DeadlineError
from cri_shim.image.builtin import busybox_archive
from cri_shim.paths import netns_file
from cri_shim.rpc.client import errors_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cri_shim.cli.progress import Progress
    from cri_shim.rpc.client import Client

LOG_ROOT: Final = Path("/run")
"""Not /tmp: with PrivateTmp= the daemon and its monitors, which write the log, would see another /tmp."""
STOP_GRACE_S: Final = 10
CALL_TIMEOUT_S: Final = 60.0
POD_TIMEOUT_S: Final = 300.0
"""Longer than the default timeouts of plugins and monitors, so that the daemon's error names what hung."""


class DemoPod:
    """The demo's pod and its objects. Every method raises CriShimError with the daemon's text."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.name = f"hello-{secrets.token_hex(3)}"
        self.sandbox_id = ""
        self.container_id = ""
        self._log_dir: Path | None = None
        self._image_is_ours = False
        self._image_is_gone = False
        self._is_begun = False
        self._is_given_up = False

    @property
    def endpoint(self) -> str:
        """The daemon's address for CRI clients."""
        return f"unix://{self.client.socket_path}"

    # --- making --------------------------------------------------------------------------------------------------

    @property
    def log_dir(self) -> Path:
        """The pod's log directory, with access for root only. The first call creates it."""
        if self._log_dir is None:
            try:
                self._log_dir = Path(tempfile.mkdtemp(prefix="cri-shim-demo-", dir=LOG_ROOT))
            except OSError as error:
                raise CriShimError(
                    f"cannot make a log directory in {LOG_ROOT}: {error.strerror}"
                ) from error
        return self._log_dir

    @property
    def log_file(self) -> Path:
        """The container's log."""
        return self.log_dir / requests.LOG_NAME

    def bring_image(self, progress: Progress) -> tuple[api.Image, bool]:
        """Import an image built from this node's busybox. Returns it, and whether it was present before."""
        before = self.images()
        if (image := _named(before)) is not None:
            return image, True
        archive = self.log_dir / "image.tar"
        try:
            archive.write_bytes(busybox_archive(requests.IMAGE))
        except OSError as error:
            raise CriShimError(f"cannot write {archive}: {error.strerror}") from error
        self._image_is_ours = True
        images = DaemonImages(self.client)
        [imported] = import_archive(images, ArchiveStream(archive), name="", progress=progress)
        archive.unlink()
        if any(image.id == imported.id for image in before):
            # The same content was present under another name, which RemoveImage would remove as well.
            self._image_is_ours = False
        image = _named(self.images())
        if image is None:
            raise CriShimError(f"image {requests.IMAGE} was imported, but ListImages lacks it")
        return image, False

    def run_sandbox(self) -> api.PodSandboxStatus:
        """Run the sandbox and return its status."""
        self._is_begun = True
        begun_at = time.monotonic()
        try:
            self._ask_for_sandbox(POD_TIMEOUT_S)
        except DeadlineError:
            self._is_given_up = time.monotonic() - begun_at >= POD_TIMEOUT_S
            raise
        with errors_of(f"cannot get the status of sandbox {self.sandbox_id}"):
            return self.client.runtime.PodSandboxStatus(
                api.PodSandboxStatusRequest(pod_sandbox_id=self.sandbox_id), timeout=CALL_TIMEOUT_S
            ).status

    def run_container(self) -> None:
        """Create and start the container."""
        with errors_of("cannot create the container"):
            self.container_id = self.client.runtime.CreateContainer(
                api.CreateContainerRequest(
                    pod_sandbox_id=self.sandbox_id,
                    config=requests.container_config(self.name),
                    sandbox_config=requests.pod_config(self.name, self.log_dir),
                ),
                timeout=POD_TIMEOUT_S,
            ).container_id
        with errors_of(f"cannot start container {self.container_id}"):
            self.client.runtime.StartContainer(
                api.StartContainerRequest(container_id=self.container_id), timeout=CALL_TIMEOUT_S
            )

    def stop_container(self) -> None:
        """Stop the container with a grace period."""
        with errors_of(f"cannot stop container {self.container_id}"):
            self.client.runtime.StopContainer(
                api.StopContainerRequest(container_id=self.container_id, timeout=STOP_GRACE_S),
                timeout=CALL_TIMEOUT_S,
            )

    # --- looking -------------------------------------------------------------------------------------------------

    def images(self) -> Sequence[api.Image]:
        """All images of the node."""
        with errors_of("cannot list images"):
            request = api.ListImagesRequest()
            return self.client.images.ListImages(request, timeout=CALL_TIMEOUT_S).images

    def container_status(self) -> api.ContainerStatus:
        """The container's status."""
        with errors_of(f"cannot get the status of container {self.container_id}"):
            return self.client.runtime.ContainerStatus(
                api.ContainerStatusRequest(container_id=self.container_id), timeout=CALL_TIMEOUT_S
            ).status

    # --- taking away ---------------------------------------------------------------------------------------------

    def take_away(self) -> None:
        """Remove everything that was created. Raises the first failure after trying all; may be called again."""
        failure: CriShimError | None = None
        for remove in (self._remove_sandbox, self._remove_image, self._remove_log):
            try:
                remove()
            except CriShimError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def require_gone(self) -> list[str]:
        """Check after `take_away` that nothing is left.

        Returns what was removed. Raises CriShimError with what is left.
        """
        left = [f"sandbox {found}" for found in self._sandboxes()]
        with errors_of("cannot list containers"):
            request = api.ListContainersRequest(
                filter=api.ContainerFilter(label_selector=requests.labels(self.name))
            )
            answer = self.client.runtime.ListContainers(request, timeout=CALL_TIMEOUT_S)
        left += [f"container {container.id}" for container in answer.containers]
        if netns_file(self.sandbox_id).exists():
            left.append(f"network namespace {netns_file(self.sandbox_id)}")
        if self._image_is_ours and _named(self.images()) is not None:
            left.append(f"image {requests.IMAGE}")
        if left:
            raise CriShimError(f"still present after the removal: {', '.join(left)}")
        return ["container", "pod", "network namespace", *(["image"] * self._image_is_ours), "log"]

    def left_behind(self) -> list[str]:
        """Commands that remove the objects that are left."""
        crictl = f"crictl -r {self.endpoint}"
        commands = []
        if self._is_begun:
            which = self.sandbox_id[:13] or f"$({crictl} pods -q --label demo={self.name})"
            commands.append(f"{crictl} rmp -f {which}")
        if self._image_is_ours and not self._image_is_gone:
            commands.append(f"{crictl} rmi {requests.IMAGE}")
        if self._log_dir is not None:
            commands.append(f"rm -r {self._log_dir}")
        return commands

    def _remove_sandbox(self) -> None:
        if not self._is_begun:
            return
        if self._is_given_up:
            try:
                self._ask_for_sandbox(CALL_TIMEOUT_S)
            except DeadlineError:
                raise
            except CriShimError:
                pass  # the creation failed; a failed undo may have left a sandbox, which is listed below
            self._is_given_up = False
        for sandbox_id in self._sandboxes():
            with errors_of(f"cannot remove sandbox {sandbox_id}"):
                # Two calls, as the kubelet makes them: errors of CNI plugins come with the stop.
                self.client.runtime.StopPodSandbox(
                    api.StopPodSandboxRequest(pod_sandbox_id=sandbox_id), timeout=POD_TIMEOUT_S
                )
                self.client.runtime.RemovePodSandbox(
                    api.RemovePodSandboxRequest(pod_sandbox_id=sandbox_id), timeout=POD_TIMEOUT_S
                )
        self._is_begun = False

    def _remove_image(self) -> None:
        if not self._image_is_ours or self._image_is_gone:
            return
        with errors_of(f"cannot remove image {requests.IMAGE}"):
            self.client.images.RemoveImage(
                api.RemoveImageRequest(image=api.ImageSpec(image=requests.IMAGE)),
                timeout=CALL_TIMEOUT_S,
            )
        self._image_is_gone = True

    def _remove_log(self) -> None:
        if self._log_dir is None:
            return
        try:
            shutil.rmtree(self._log_dir)
        except OSError as error:
            raise CriShimError(f"cannot remove {self._log_dir}: {error.strerror}") from error
        self._log_dir = None

    def _ask_for_sandbox(self, timeout_s: float) -> None:
        with errors_of("cannot run the pod"):
            self.sandbox_id = self.client.runtime.RunPodSandbox(
                api.RunPodSandboxRequest(config=requests.pod_config(self.name, self.log_dir)),
                timeout=timeout_s,
            ).pod_sandbox_id

    def _sandboxes(self) -> list[str]:
        """IDs of this demo's sandboxes, found by label, so also of one whose creation was not answered."""
        with errors_of("cannot list sandboxes"):
            request = api.ListPodSandboxRequest(
                filter=api.PodSandboxFilter(label_selector=requests.labels(self.name))
            )
            answer = self.client.runtime.ListPodSandbox(request, timeout=CALL_TIMEOUT_S)
        return [sandbox.id for sandbox in answer.items]


def _named(images: Sequence[api.Image]) -> api.Image | None:
    return next((image for image in images if requests.IMAGE in image.repo_tags), None)
