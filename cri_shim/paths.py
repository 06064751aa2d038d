"""The paths of all files of the daemon. No other module joins a path of an object.

Rules:
- `root` survives a reboot, `state` need not.
- All paths of an object derive from its ID, so recovery and removal need only the ID.
- This module does not access the disk.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

NETNS_DIR = Path("/run/netns")


def netns_file(sandbox_id: str) -> Path:
    """The pin of a sandbox's network namespace, under a name that `ip netns` lists."""
    return NETNS_DIR / f"cri-{sandbox_id[:32]}"


@dataclass(frozen=True, slots=True)
class ObjectPaths:
    """The directories and files of one sandbox or container."""

    root_dir: Path
    """Persistent: record, status, generated files, the writable layer."""
    state_dir: Path
    """Volatile: the OCI bundle and what the monitor writes."""

    @property
    def record_file(self) -> Path:
        """Identity and request; written once."""
        return self.root_dir / "record.json"

    @property
    def status_file(self) -> Path:
        """The mutable status; replaced atomically."""
        return self.root_dir / "status.json"

    @property
    def upper_dir(self) -> Path:
        """The overlay's writable layer."""
        return self.root_dir / "upper"

    @property
    def work_dir(self) -> Path:
        """The overlay's work directory, on the file system of `upper_dir`, as overlayfs requires."""
        return self.root_dir / "work"

    @property
    def volumes_dir(self) -> Path:
        """A directory for each VOLUME of the image, with the image's content at that path."""
        return self.root_dir / "volumes"

    @property
    def images_dir(self) -> Path:
        """Mount points of image volumes, each named by its index in the request."""
        return self.state_dir / "images"

    @property
    def memory_dir(self) -> Path:
        """The sandbox's tmpfs, with `shm_dir` and `etc_dir`, which its containers share."""
        return self.state_dir / "memory"

    @property
    def shm_dir(self) -> Path:
        """The sandbox's /dev/shm."""
        return self.memory_dir / "shm"

    @property
    def etc_dir(self) -> Path:
        """Generated hostname, hosts and resolv.conf files, bind-mounted into containers."""
        return self.memory_dir / "etc"

    @property
    def former_shm_dir(self) -> Path:
        """The shared memory of sandboxes that earlier versions created, a tmpfs of its own."""
        return self.state_dir / "shm"

    @property
    def former_etc_dir(self) -> Path:
        """`etc_dir` of such sandboxes, on disk."""
        return self.root_dir / "etc"

    @property
    def bundle_dir(self) -> Path:
        """The OCI bundle: config.json, and the monitor's control files."""
        return self.state_dir

    @property
    def rootfs_dir(self) -> Path:
        """The mount point of the overlay root file system."""
        return self.state_dir / "rootfs"

    @property
    def spec_file(self) -> Path:
        """The OCI runtime-spec, config.json of the bundle."""
        return self.state_dir / "config.json"

    @property
    def resources_file(self) -> Path:
        """New resource limits, for the runtime's `update` command."""
        return self.state_dir / "resources.json"

    @property
    def pid_file(self) -> Path:
        """The pid of the container's first process, written by the OCI runtime."""
        return self.state_dir / "pid"

    @property
    def top_process_file(self) -> Path:
        """Pid and start time of the process above all others: a container's monitor, a sandbox's pause process.

        It is written before the monitor may begin its work. Sandboxes with their own kernel have a monitor as well,
        and so have those of former versions.
        """
        return self.state_dir / "monitor.json"

    @property
    def persist_dir(self) -> Path:
        """The directory in which the monitor creates its file `oom`. An object without a monitor has none."""
        return self.state_dir / "persist"

    def says_oom(self) -> bool:
        """Whether the monitor, or a shim, has left its file `oom`."""
        return any((each / "oom").exists() for each in (self.persist_dir, self.bundle_dir))

    @property
    def exec_dir(self) -> Path:
        """One file per running exec: pid and start time."""
        return self.state_dir / "exec"


@functools.lru_cache(
    maxsize=1024
)  # the calls of one pod ask a hundred times for the same few objects
def _object_paths(root: Path, state: Path, kind: str, object_id: str) -> ObjectPaths:
    return ObjectPaths(root / kind / object_id, state / kind / object_id)


@dataclass(frozen=True, slots=True)
class Paths:
    """The daemon's directories."""

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
        """The text of our AppArmor profile, as it was loaded."""
        return self.state / "apparmor" / "cri-shim-default"

    @property
    def pending_deletes_dir(self) -> Path:
        """One file per network attachment whose DEL failed and is retried."""
        return self.root / "pending_deletes"

    @property
    def damaged_dir(self) -> Path:
        """Directories of objects whose record could not be read, `<ID>-<time>`, for inspection."""
        return self.root / "damaged"

    @property
    def images_dir(self) -> Path:
        """The OCI image layout (index.json, blobs) and the store's own records."""
        return self.root / "images"

    @property
    def layers_dir(self) -> Path:
        """Unpacked layers, under short names, since overlay options must fit into one page."""
        return self.root / "layers"

    @property
    def exits_dir(self) -> Path:
        """Exit files: monitors write the exit code to `<id>`."""
        return self.state / "exits"

    @property
    def console_dir(self) -> Path:
        """Console sockets of runtimes. The path is short, since a socket's path has at most 107 bytes."""
        return self.state / "tty"

    @property
    def streams_socket(self) -> Path:
        """The socket of the process that holds the streams of shims' containers."""
        return self.state / "streams.sock"

    def runtime_root(self, handler: str) -> Path:
        """The state directory of an OCI runtime (`--root`)."""
        return self.state / "runtime" / handler

    def sandbox(self, sandbox_id: str) -> ObjectPaths:
        """The directories of one sandbox."""
        return _object_paths(self.root, self.state, "sandboxes", sandbox_id)

    def container(self, container_id: str) -> ObjectPaths:
        """The directories of one container."""
        return _object_paths(self.root, self.state, "containers", container_id)
