"""Logs are rotated ten times a second while a container writes as fast as it can: each line is there once, in order.

A few seconds in each run; CRI_SHIM_FAULT_LOG_MB megabytes when asked for (`-m slow`). The rate is printed, not judged.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.faults.log_text import joined, write_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

MB = 1_000_000
TEXT_MB = 12
SOME_MB = 144
MANY_MB = 3000
ROTATION_S = 0.1
WRITES = """
copy() { for _ in $(seq $1); do cat /text/lines; done; }
copy $1 & copy $1 >&2
wait
"""


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    def say(text: str) -> None:
        with capsys.disabled():
            print(f" {text} ", end="", flush=True)

    return say


def rotate_until_the_end(client: Client, container: str, log: Path) -> list[Path]:
    """Rotate as the kubelet does, on the beat; every file of the log in the order of writing."""
    files: list[Path] = []
    beat = time.monotonic()
    while True:
        beat += ROTATION_S
        time.sleep(max(beat - time.monotonic(), 0))
        rotated = log.with_name(f"{log.name}.{len(files)}")
        log.rename(rotated)
        files.append(rotated)
        try:
            client.runtime.ReopenContainerLog(
                api.ReopenContainerLogRequest(container_id=container), timeout=10
            )
        except grpc.RpcError as refusal:
            # It ended between the two, with the renamed file as its last.
            if refusal.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            return [*files, log] if log.exists() else files


def write_and_rotate(
    daemon: Daemon, image: str, directory: Path, megabytes: int, seed: int
) -> tuple[float, int]:
    """A container writes so much to both streams at once; the rate in MB/s and into how many files it went."""
    text = directory / "lines"
    write_text(text, TEXT_MB * MB, seed)
    times = megabytes // TEXT_MB // 2
    client = daemon.client
    config = client.pod_config()
    pod = client.run_pod(config)
    mount = api.Mount(container_path="/text", host_path=str(directory), readonly=True)
    wanted = client.container_config(image, ["sh", "-c", WRITES, "sh", str(times)], mounts=[mount])
    began = time.monotonic()
    container = client.run(pod, wanted, config)
    log = Path(client.status(container).status.log_path)
    files = rotate_until_the_end(client, container, log)
    took = time.monotonic() - began
    assert client.wait_exited(container).exit_code == 0
    written = text.read_bytes() * times
    for stream in ("stdout", "stderr"):
        found = joined(files, stream)
        # Not compared by pytest, which would show the difference of megabytes.
        same = found == written
        assert same, f"{stream}: {difference(found, written)}"
    for file in files:
        file.unlink()
    return 2 * len(written) / MB / took, len(files)


def difference(found: bytes, written: bytes) -> str:
    """Where the first one is, and how many lines there are."""
    at = next(
        (n for n, (a, b) in enumerate(zip(found, written, strict=False)) if a != b),
        min(len(found), len(written)),
    )
    return (
        f"{len(found.splitlines())} lines for {len(written.splitlines())}; "
        f"byte {at}: {found[at : at + 60]!r} for {written[at : at + 60]!r}"
    )


def test_no_line_is_lost_torn_or_doubled_over_rotations(
    crash_daemon: Daemon, image: str, tmp_path: Path, seed: int, say: Callable[[str], None]
) -> None:
    rate, files = write_and_rotate(crash_daemon, image, tmp_path, SOME_MB, seed)
    say(f"{rate:.0f} MB/s into {files} files")
    assert files > 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_line_is_lost_torn_or_doubled_over_many_rotations(
    crash_daemon: Daemon, image: str, tmp_path: Path, seed: int, say: Callable[[str], None]
) -> None:
    left = int(os.environ.get("CRI_SHIM_FAULT_LOG_MB") or MANY_MB)
    while left > 0:
        rate, files = write_and_rotate(crash_daemon, image, tmp_path, SOME_MB * 2, seed)
        say(f"{rate:.0f} MB/s into {files} files")
        crash_daemon.client.remove_all_pods()
        left -= SOME_MB * 2
