"""Where every file of the daemon is; nothing else joins a path of an object.

Rules: `root` survives a reboot, `state` need not. Every path of an object derives from its ID, so that recovery
and removal need only the ID. Nothing here touches the disk.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

NETNS_DIR = Path("/run/netns")


def netns_file(sandbox_id: str) -> Path:
    """The pinned network namespace of a sandbox, under a name that `ip netns` shows."""
    return NETNS_DIR / f"cri-{sandbox_id[:32]}"


@dataclass(frozen=True, slots=True)
class ObjectPaths:
    """The two directories of one sandbox or container, and the files in them."""

    root_dir: Path
    """Persistent: record, status, generated files, the writable layer."""
    state_dir: Path
    """Volatile: the OCI bundle and what the monitor writes."""

    @property
    def record_file(self) -> Path:
        """Identity and request, written once."""
        return self.root_dir / "record.json"

    @property
    def status_file(self) -> Path:
        """What changes, replaced atomically."""
        return self.root_dir / "status.json"

    @property
    def upper_dir(self) -> Path:
        """The overlay's writable layer."""
        return self.root_dir / "upper"

    @property
    def work_dir(self) -> Path:
        """The overlay's work directory; on the file system of `upper_dir`, as overlayfs demands."""
        return self.root_dir / "work"

    @property
    def volumes_dir(self) -> Path:
        """A directory for each VOLUME that the image declares, with what the image has there."""
        return self.root_dir / "volumes"

    @property
    def images_dir(self) -> Path:
        """Where images that the container mounts as volumes are mounted, each under its place in the request."""
        return self.state_dir / "images"

    @property
    def memory_dir(self) -> Path:
        """The sandbox's tmpfs, with what its containers share: `shm_dir` and `etc_dir`."""
        return self.state_dir / "memory"

    @property
    def shm_dir(self) -> Path:
        """The sandbox's /dev/shm."""
        return self.memory_dir / "shm"

    @property
    def etc_dir(self) -> Path:
        """Generated hostname, hosts and resolv.conf, bind-mounted into containers."""
        return self.memory_dir / "etc"

    @property
    def former_shm_dir(self) -> Path:
        """Where sandboxes of former versions have their /dev/shm: a tmpfs of its own."""
        return self.state_dir / "shm"

    @property
    def former_etc_dir(self) -> Path:
        """Where those have what `etc_dir` has, on disk."""
        return self.root_dir / "etc"

    @property
    def bundle_dir(self) -> Path:
        """The OCI bundle: config.json, and the monitor's control files."""
        return self.state_dir

    @property
    def rootfs_dir(self) -> Path:
        """Where the overlay root file system is mounted."""
        return self.state_dir / "rootfs"

    @property
    def spec_file(self) -> Path:
        """The runtime-spec."""
        return self.state_dir / "config.json"

    @property
    def resources_file(self) -> Path:
        """New limits on their way to the OCI runtime."""
        return self.state_dir / "resources.json"

    @property
    def pid_file(self) -> Path:
        """The container's first process, written by the OCI runtime."""
        return self.state_dir / "pid"

    @property
    def monitor_file(self) -> Path:
        """The monitor's pid and start time, written by us before it may start."""
        return self.state_dir / "monitor.json"

    @property
    def persist_dir(self) -> Path:
        """Where the monitor leaves its `oom` mark."""
        return self.state_dir / "persist"

    @property
    def exec_dir(self) -> Path:
        """One file per running exec: pid and start time."""
        return self.state_dir / "exec"


@functools.lru_cache(maxsize=1024)  # a pod's life asks a hundred times for the same few
def _object_paths(root: Path, state: Path, kind: str, object_id: str) -> ObjectPaths:
    return ObjectPaths(root / kind / object_id, state / kind / object_id)


@dataclass(frozen=True, slots=True)
class Paths:
    """The daemon's two trees."""

    root: Path
    state: Path

    @property
    def sandboxes_dir(self) -> Path:
        """One directory per sandbox."""
        return self.root / "sandboxes"

    @property
    def containers_dir(self) -> Path:
        """One directory per container."""
        return self.root / "containers"

    @property
    def apparmor_file(self) -> Path:
        """Our AppArmor profile, as it was loaded."""
        return self.state / "apparmor" / "cri-shim-default"

    @property
    def pending_deletes_dir(self) -> Path:
        """One file per network attachment whose DEL failed and is tried again."""
        return self.root / "pending_deletes"

    @property
    def damaged_dir(self) -> Path:
        """Objects whose record could not be read: `<ID>-<time>`, for whoever wants to look."""
        return self.root / "damaged"

    @property
    def images_dir(self) -> Path:
        """An OCI layout (index.json, blobs) and the store's own records."""
        return self.root / "images"

    @property
    def layers_dir(self) -> Path:
        """Unpacked layers under short names: overlay options must fit one page."""
        return self.root / "layers"

    @property
    def exits_dir(self) -> Path:
        """Where monitors drop `<id>` with the exit code."""
        return self.state / "exits"

    @property
    def console_dir(self) -> Path:
        """Where a runtime hands a terminal to a monitor; kept short, since a socket's path has 108 bytes."""
        return self.state / "tty"

    def runtime_root(self, handler: str) -> Path:
        """The OCI runtime's own `--root`."""
        return self.state / "runtime" / handler

    def sandbox(self, sandbox_id: str) -> ObjectPaths:
        """The directories of one sandbox."""
        return _object_paths(self.root, self.state, "sandboxes", sandbox_id)

    def container(self, container_id: str) -> ObjectPaths:
        """The directories of one container."""
        return _object_paths(self.root, self.state, "containers", container_id)
