"""Creates the files that a pod's containers share: hostname, hosts, resolv.conf, /dev/shm, and the log directory.

Rules:
- The files are created once per sandbox and bind-mounted. Containers may write to them, as with other runtimes. So they
  are on the tmpfs of /dev/shm: its size bounds them, and their pages are charged to the container that writes them.
- DNS entries and the hostname are checked, since a newline in them would add lines of the client's choice.
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.errors import InvalidArgumentError, host_step
from cri_shim.host.files import read_bounded, write_atomic
from cri_shim.kernel_call import working_on
from cri_shim.oci.spec.sandbox import checked_hostname
from cri_shim.quoting import quoted
from cri_shim.sandbox.network.pod_network import has_host_network
from cri_shim.sandbox.spec.user_namespace import root_of

if TYPE_CHECKING:
    from cri_shim._pb.cri.v1 import api_pb2 as api
    from cri_shim.host.port import Host
    from cri_shim.paths import ObjectPaths, Paths
    from cri_shim.sandbox.store.store import Sandbox

MAX_HOST_FILE_BYTES = 1 << 20
MEMORY_BYTES = 64 << 20
"""Size of the tmpfs, the usual one of a pod's /dev/shm in other runtimes. Here it includes the files."""
_WORD = re.compile(r"[!-~]+")
_FALLBACK_HOSTS = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


class PodFiles:
    """Creates the shared files of sandboxes."""

    def __init__(self, host: Host, paths: Paths, etc_dir: Path) -> None:
        self._host = host
        self._paths = paths
        self._etc_dir = etc_dir

    def check(self, config: api.PodSandboxConfig) -> str:
        """Check the request, and return the pod's hostname.

        Raises InvalidArgumentError for an invalid hostname, DNS entry or log directory.
        """
        for name, words in (
            ("servers", config.dns_config.servers),
            ("searches", config.dns_config.searches),
            ("options", config.dns_config.options),
        ):
            for word in words:
                if not _WORD.fullmatch(word):
                    raise InvalidArgumentError(
                        f"config.dns_config.{name}: {quoted(word)}: must be printable ASCII without white space"
                    )
        directory = config.log_directory
        if directory and (not directory.startswith("/") or ".." in directory.split("/")):
            raise InvalidArgumentError(
                f"config.log_directory: {quoted(directory)}: must be an absolute path without '..'"
            )
        hostname = config.hostname
        if has_host_network(config) or not hostname:
            return socket.gethostname()
        return checked_hostname(hostname)

    def make_log_directory(self, sandbox: Sandbox) -> None:
        """Create the directory for the logs of the pod's containers. Blocks as long as its file system hangs.

        Raises ResourceExhaustedError if the disk is full, CriShimError.
        """
        if directory := sandbox.config.log_directory:
            working_on("config.log_directory", directory)
            with host_step(f"config.log_directory: creating {quoted(directory)}"):
                Path(directory).mkdir(parents=True, exist_ok=True, mode=0o755)

    def make(self, sandbox: Sandbox) -> None:
        """Create the tmpfs with /dev/shm and the files, which the pod's root may write. Unmounting undoes it.

        Blocking. Raises ResourceExhaustedError without memory, CriShimError.
        """
        with host_step(f"sandbox {sandbox.id}: creating /dev/shm and the files in /etc"):
            owner = root_of(sandbox)
            paths, label = self._paths.sandbox(sandbox.id), sandbox.record.labels.files
            paths.memory_dir.mkdir(mode=0o700)
            self._host.mount_tmpfs(
                paths.memory_dir,
                size_bytes=MEMORY_BYTES,
                mode=0o755,
                noexec=True,
                owner=owner or (0, 0),
                label=label,
            )
            paths.shm_dir.mkdir()
            paths.shm_dir.chmod(0o1777)
            paths.etc_dir.mkdir(mode=0o755)
            for name, content in (
                ("hostname", f"{sandbox.record.hostname}\n".encode()),
                ("hosts", self._host_file("hosts", _FALLBACK_HOSTS)),
                ("resolv.conf", self._resolv_conf(sandbox.config)),
            ):
                write_atomic(paths.etc_dir / name, content, mode=0o644)
            if owner is not None:
                for path in (paths.shm_dir, *paths.etc_dir.iterdir()):
                    os.chown(path, *owner)

    def _resolv_conf(self, config: api.PodSandboxConfig) -> bytes:
        dns = config.dns_config
        if not (dns.servers or dns.searches or dns.options):
            return self._host_file("resolv.conf", b"")
        lines = []
        if dns.searches:
            lines.append(f"search {' '.join(dns.searches)}\n")
        lines += [f"nameserver {server}\n" for server in dns.servers]
        if dns.options:
            lines.append(f"options {' '.join(dns.options)}\n")
        return "".join(lines).encode()

    def _host_file(self, name: str, fallback: bytes) -> bytes:
        try:
            return read_bounded(self._etc_dir / name, MAX_HOST_FILE_BYTES)
        except (OSError, ValueError):
            return fallback


def shared_dirs(paths: ObjectPaths) -> tuple[Path, Path]:
    """The directories of a sandbox's /dev/shm and files, also of a sandbox that an earlier version created."""
    if paths.former_etc_dir.is_dir():  # containers cannot create it
        return paths.former_shm_dir, paths.former_etc_dir
    return paths.shm_dir, paths.etc_dir
