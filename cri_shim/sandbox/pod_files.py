"""The files a pod's containers share: hostname, hosts, resolv.conf; and the directory for their logs.

Rules: they are made once per sandbox, below its persistent directory, and bind-mounted; what a client puts in is
checked byte by byte, since one newline would add a line of the client's choosing.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.errors import InvalidArgumentError, host_step
from cri_shim.host.files import read_bounded, write_atomic
from cri_shim.sandbox.network import has_host_network

if TYPE_CHECKING:
    from cri_shim._pb.cri.v1 import api_pb2 as api
    from cri_shim.paths import Paths
    from cri_shim.sandbox.store import Sandbox

MAX_HOST_FILE_BYTES = 1 << 20
MAX_HOSTNAME = 64
"""HOST_NAME_MAX of Linux: sethostname(2) refuses more."""
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_WORD = re.compile(r"[!-~]+")
_FALLBACK_HOSTS = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


class PodFiles:
    """Writes what a sandbox's containers find in /etc."""

    def __init__(self, paths: Paths, etc_dir: Path = Path("/etc")) -> None:
        self._paths = paths
        self._etc_dir = etc_dir

    def check(self, config: api.PodSandboxConfig) -> str:
        """The hostname the pod will have.

        Raises InvalidArgumentError for a hostname, DNS entry or log directory that can't be.
        """
        for name, words in (
            ("servers", config.dns_config.servers),
            ("searches", config.dns_config.searches),
            ("options", config.dns_config.options),
        ):
            for word in words:
                if not _WORD.fullmatch(word):
                    raise InvalidArgumentError(
                        f"config.dns_config.{name}: {word!r}: printable ASCII without white space"
                    )
        directory = config.log_directory
        if directory and (not directory.startswith("/") or ".." in directory.split("/")):
            raise InvalidArgumentError(
                f"config.log_directory: {directory!r}: an absolute path without '..'"
            )
        hostname = config.hostname
        if has_host_network(config) or not hostname:
            return socket.gethostname()
        if len(hostname) > MAX_HOSTNAME or not _HOSTNAME.fullmatch(hostname):
            raise InvalidArgumentError(
                f"config.hostname: {hostname!r}: letters, digits, '-' and '.', at most {MAX_HOSTNAME}"
            )
        return hostname

    def write(self, sandbox: Sandbox) -> None:
        """Make the files and the log directory. Raises ResourceExhaustedError when the disk won't have them."""
        etc_dir = self._paths.sandbox(sandbox.id).etc_dir
        with host_step(f"sandbox {sandbox.id}: writing its files"):
            etc_dir.mkdir(mode=0o755)
            write_atomic(etc_dir / "hostname", f"{sandbox.record.hostname}\n".encode(), mode=0o644)
            write_atomic(etc_dir / "hosts", self._host_file("hosts", _FALLBACK_HOSTS), mode=0o644)
            write_atomic(etc_dir / "resolv.conf", self._resolv_conf(sandbox.config), mode=0o644)
            if sandbox.config.log_directory:
                Path(sandbox.config.log_directory).mkdir(parents=True, exist_ok=True, mode=0o755)

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
