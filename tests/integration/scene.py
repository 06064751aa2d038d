"""One pod and its containers in few words, and what a refusal must say: the vocabulary of the tests beside this file.

Rules: nothing here is a fixture, and nothing cleans up: the `client` fixture takes a test's pods away, whatever state
they are in, and `leak_guard` looks after it.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import grpc
import pytest

from tests.harness.slowness import SLOWNESS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cri_shim._pb.cri.v1 import api_pb2 as api
    from tests.harness.client import Client

NETNS_DIR = Path("/run/netns")
CGROUP_DIR = Path("/sys/fs/cgroup")
MAX_PART_BYTES = 8192
"""What the monitor writes into one line of a log."""
_LOG_LINE = re.compile(
    rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(?:Z|[+-]\d\d:\d\d)) (stdout|stderr) ([FP]) (.*)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a log in CRI's format."""

    at: str
    stream: str
    tag: str
    """F: the line ends here; P: it goes on."""
    text: bytes


def log_lines(file: Path) -> list[LogLine]:
    """The lines of a log. Fails on one that is not in CRI's format, or is cut off."""
    data = file.read_bytes()
    assert not data or data.endswith(b"\n"), f"{file} ends in the middle of a line: {data[-80:]!r}"
    lines = []
    for raw in data.split(b"\n")[:-1]:
        match = _LOG_LINE.fullmatch(raw)
        assert match is not None, f"{file}: no line of CRI's format: {raw[:200]!r}"
        at, stream, tag, text = match.groups()
        lines.append(LogLine(at.decode(), stream.decode(), tag.decode(), text))
    return lines


def written(file: Path, stream: str = "stdout") -> bytes:
    """What was written to one stream, put together again."""
    lines = [line for line in log_lines(file) if line.stream == stream]
    return b"".join(line.text + (b"\n" if line.tag == "F" else b"") for line in lines)


class Pod:
    """A pod that runs, and containers made in it."""

    def __init__(
        self, client: Client, image: str, pod_id: str, config: api.PodSandboxConfig
    ) -> None:
        self.client = client
        self.image = image
        self.id = pod_id
        self.config = config

    @classmethod
    def run(
        cls,
        client: Client,
        image: str,
        config: api.PodSandboxConfig | None = None,
        *,
        handler: str = "",
    ) -> Self:
        """RunPodSandbox; without a config, of an ordinary pod."""
        config = client.pod_config() if config is None else config
        return cls(client, image, client.run_pod(config, handler=handler), config)

    @property
    def netns(self) -> Path:
        """Where its network namespace is pinned."""
        return NETNS_DIR / f"cri-{self.id[:32]}"

    @property
    def ip(self) -> str:
        """Its address."""
        return self.client.pod_status(self.id).status.network.ip

    def container(self, *command: str, name: str = "") -> api.ContainerConfig:
        """The config of a container that runs `command`; change it, then `create` or `start` it."""
        return self.client.container_config(self.image, command, name=name)

    def create(self, config: api.ContainerConfig) -> str:
        """CreateContainer."""
        return self.client.create(self.id, config, self.config)

    def start(self, config: api.ContainerConfig) -> str:
        """CreateContainer, StartContainer."""
        return self.client.run(self.id, config, self.config)

    def sleeper(self, config: api.ContainerConfig | None = None) -> str:
        """A running container that does nothing, for execs to look around in."""
        config = self.container() if config is None else config
        del config.command[:]
        config.command.extend(["sleep", "3600"])
        return self.start(config)

    def ends(self, config: api.ContainerConfig, *, timeout_s: float = 20.0) -> api.ContainerStatus:
        """Run a container to its end."""
        return self.client.wait_exited(self.start(config), timeout_s=timeout_s)

    def says(self, script: str, config: api.ContainerConfig | None = None) -> str:
        """What a shell script, as the container's own process, writes; it must succeed."""
        config = self.container() if config is None else config
        del config.command[:]
        config.command.extend(["sh", "-c", script])
        status = self.ends(config)
        log = Path(status.log_path)
        assert status.exit_code == 0, f"{script!r}: {status.exit_code}: {log.read_text()}"
        return written(log).decode()

    def asks(self, container: str, script: str) -> str:
        """What a shell script, in an exec, writes; it must succeed."""
        answer = self.client.exec(container, "sh", "-c", script)
        assert answer.exit_code == 0, f"{script!r}: {answer.exit_code}: {answer.stderr!r}"
        return answer.stdout.decode()


@contextmanager
def refused(code: grpc.StatusCode, *words: str) -> Iterator[None]:
    """The call inside must fail with `code` and a message that has all of `words`."""
    with pytest.raises(grpc.RpcError) as raised:
        yield
    error = cast("grpc.Call", raised.value)  # what grpc raises is both, which its types don't say
    details = error.details() or ""
    assert error.code() is code, f"{error.code()}: {details}"
    missing = [word for word in words if word not in details]
    assert not missing, f"{missing} not in the message: {details}"


def wait_until(condition: Callable[[], object], *, timeout_s: float = 10.0) -> None:
    """Wait until `condition` holds. Raises: TimeoutError."""
    deadline = time.monotonic() + timeout_s * SLOWNESS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s} s")
        time.sleep(0.02)


def free_port() -> int:
    """A TCP port of the node that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cgroups_of(object_id: str) -> list[Path]:
    """The cgroups named after an object, one for each hierarchy that has one."""
    return [
        Path(top, name)
        for top, names, _ in os.walk(CGROUP_DIR)  # takes it well when a directory goes meanwhile
        for name in names
        if object_id in name
    ]


def shares_as_weight(shares: int) -> set[str]:
    """What runtimes make of CPU shares on cgroup v2: on a straight line, or newer, one on which the defaults meet."""
    straight = 1 + (shares - 2) * 9999 // 262142
    power = math.log2(shares)
    return {str(straight), str(math.ceil(10 ** ((power**2 + 125 * power) / 612 - 7 / 34)))}


def container_info(client: Client, container: str) -> dict[str, Any]:
    """What the verbose form of ContainerStatus tells."""
    found: dict[str, Any] = json.loads(client.status(container, verbose=True).info["info"])
    return found


def unique_seconds() -> str:
    """Years to sleep, in seconds that no other process of this machine sleeps: see `processes_running`."""
    return str(100_000_000 + secrets.randbelow(100_000_000))


def processes_running(word: str) -> list[int]:
    """Pids of the node's processes that have `word` as one of their arguments."""
    found = []
    wanted = word.encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if wanted in arguments:
                found.append(int(entry.name))
    return found


def namespace(kind: str, pid: int | str = "thread-self") -> str:
    """The namespace a process lives in, as /proc names it: `net:[4026531840]`."""
    return str(Path(f"/proc/{pid}/ns/{kind}").readlink())
