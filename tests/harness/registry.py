"""Debian's docker-registry on a loopback port, for one test session, and images pushed to it."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cri_shim.image.manifest import digest_of
from tests.images import config_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.images import LayerBlob

PROGRAM = "docker-registry"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_READY_S = 20.0
_CONFIG = """\
version: 0.1
log: {{level: error}}
storage:
  filesystem: {{rootdirectory: {data}}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http: {{addr: "127.0.0.1:{port}"{tls}}}
"""


class RegistryError(Exception):
    """The registry did not come up, or refused a push."""


class DockerRegistry:
    """A running registry."""

    def __init__(self, port: int, data: Path) -> None:
        self.host = f"127.0.0.1:{port}"
        self.port = port
        self.data = data
        """Where the images are; another one may serve them as well."""

    def push(self, repository: str, tag: str, *layers: LayerBlob, **config: Any) -> str:
        """Put an image there, `config` as in `tests.images.config_of`; the digest of its manifest."""
        config_bytes = config_of(layers, **config)
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": self._blob(
                repository, "application/vnd.oci.image.config.v1+json", config_bytes
            ),
            "layers": [self._blob(repository, each.media_type, each.blob) for each in layers],
        }
        manifest = json.dumps(document).encode()
        self._request(
            "PUT", f"/v2/{repository}/manifests/{tag}", manifest, {"Content-Type": MANIFEST_TYPE}
        )
        return digest_of(manifest)

    def is_up(self) -> bool:
        """Whether it listens."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def _blob(self, repository: str, media_type: str, data: bytes) -> dict[str, Any]:
        digest = digest_of(data)
        where = self._request("POST", f"/v2/{repository}/blobs/uploads/")
        separator = "&" if "?" in where else "?"
        self._request(
            "PUT",
            f"{where}{separator}digest={digest}",
            data,
            {"Content-Type": "application/octet-stream"},
        )
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def _request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> str:
        """Gives the Location of the answer."""
        connection = http.client.HTTPConnection(self.host, timeout=10)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            said = answer.read()
            if answer.status >= 300:
                raise RegistryError(f"{method} {path}: {answer.status} {said[:300]!r}")
            return answer.getheader("Location", "").removeprefix(f"http://{self.host}")
        finally:
            connection.close()


@contextmanager
def docker_registry(
    directory: Path,
    *,
    data: Path | None = None,
    auth: str = "",
    tls: str = "",
    niceness: int = 0,
) -> Iterator[DockerRegistry]:
    """A registry that keeps its files in `directory`; gone when this closes. Raises: RegistryError.

    `data`: where another one keeps its images, which are this one's too then. `auth` and `tls` are what its
    configuration has below `auth:` and `http: tls:`, as YAML on one line.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    data = data or directory / "data"
    config = directory / f"config-{port}.yml"
    config.write_text(
        _CONFIG.format(data=data, port=port, tls=f", tls: {tls}" if tls else "")
        + (f"auth: {auth}\n" if auth else "")
    )
    log_file = directory / f"registry-{port}.log"
    with log_file.open("wb") as log:
        try:
            process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL"),
                    *("nice", "-n", str(niceness)),
                    *(PROGRAM, "serve", str(config)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        except FileNotFoundError as error:
            raise RegistryError(f"{error.filename}: not found; install {PROGRAM}") from error
    registry = DockerRegistry(port, data)
    try:
        deadline = time.monotonic() + _READY_S
        while not registry.is_up():
            if process.poll() is not None or time.monotonic() > deadline:
                said = log_file.read_text()[-2000:]
                raise RegistryError(
                    f"{PROGRAM} did not come up (the package {PROGRAM} has it): {said}"
                )
            time.sleep(0.02)
        yield registry
    finally:
        process.kill()
        process.wait()
