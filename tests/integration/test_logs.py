"""Container logs on real parts: CRI's format, long lines in parts, and a rotation that loses nothing."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.integration.scene import (
    MAX_PART_BYTES,
    Pod,
    log_lines,
    refused,
    wait_until,
    written,
)

if TYPE_CHECKING:
    from tests.harness.client import Client

pytestmark = pytest.mark.integration


def log_of(client: Client, container: str) -> Path:
    return Path(client.status(container).status.log_path)


def test_both_streams_are_logged_line_by_line_with_time_and_name(
    client: Client, image: str
) -> None:
    pod = Pod.run(client, image)
    before = time.time()
    script = "echo one; sleep 0.1; echo two >&2; sleep 0.1; echo; echo ' three '"
    status = pod.ends(pod.container("sh", "-c", script))
    lines = log_lines(Path(status.log_path))
    assert [(line.stream, line.tag, line.text) for line in lines] == [
        ("stdout", "F", b"one"),
        ("stderr", "F", b"two"),
        ("stdout", "F", b""),
        ("stdout", "F", b" three "),
    ]
    times = [datetime.fromisoformat(line.at).timestamp() for line in lines]
    assert times == sorted(times)
    assert before - 1 <= times[0] <= times[-1] <= time.time() + 1


def test_log_stands_where_the_kubelet_looks_for_it(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    config = pod.container("echo", "here")
    config.log_path = "deep/down/7.log"
    status = pod.ends(config)
    assert status.log_path == f"{pod.config.log_directory}/deep/down/7.log"
    assert written(Path(status.log_path)) == b"here\n"


def test_path_of_a_log_may_be_of_any_letters(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    config = pod.container("echo", "here")
    config.log_path = "größe 日本/0 %n.log"
    assert written(Path(pod.ends(config).log_path)) == b"here\n"


@pytest.mark.parametrize("length", [MAX_PART_BYTES - 1, MAX_PART_BYTES, 3 * MAX_PART_BYTES + 77])
def test_long_line_is_cut_into_parts_that_give_it_back(
    client: Client, image: str, length: int
) -> None:
    pod = Pod.run(client, image)
    script = f"head -c {length} /dev/zero | tr '\\0' x; echo; echo next"
    status = pod.ends(pod.container("sh", "-c", script))
    lines = log_lines(Path(status.log_path))
    assert written(Path(status.log_path)) == b"x" * length + b"\nnext\n"
    assert max(len(line.text) for line in lines) <= MAX_PART_BYTES
    assert lines[-1].text == b"next"
    full = [line for line in lines if line.tag == "F"]
    assert len(full) == 2


def test_last_line_without_a_newline_is_closed_in_both_streams(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    status = pod.ends(pod.container("sh", "-c", "printf '1\\n2'; printf err >&2"))
    lines = log_lines(Path(status.log_path))
    assert written(Path(status.log_path)) == b"1\n2\n"
    assert written(Path(status.log_path), "stderr") == b"err\n"
    assert [line.at for line in lines] == sorted(line.at for line in lines)
    tags = {line.stream: line.tag for line in lines}
    assert tags == {"stdout": "F", "stderr": "F"}, "of the last record of each"


def test_last_line_of_a_terminal_and_of_a_stopped_container_is_closed(
    client: Client, image: str
) -> None:
    pod = Pod.run(client, image)
    config = pod.container("sh", "-c", "printf prompt; sleep 60")
    config.tty = True
    container = pod.start(config)
    log = log_of(client, container)
    wait_until(lambda: log_lines(log))
    assert log_lines(log)[-1].tag == "P"
    client.stop(container)
    assert [(line.tag, line.text) for line in log_lines(log)] == [("P", b"prompt"), ("F", b"")]


def test_bytes_are_logged_as_they_are(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    status = pod.ends(pod.container("printf", r"\001\033[31m\377\376\t\r\n"))
    assert written(Path(status.log_path)) == b"\x01\x1b[31m\xff\xfe\t\r\n"


def test_rotation_under_continuous_output_loses_no_line(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    script = "i=0; while ! test -e /enough; do echo $i; i=$((i+1)); done; echo $i >/count"
    container = pod.start(pod.container("sh", "-c", f"{script}; sleep 3600"))
    log = log_of(client, container)
    files = []
    for number in range(8):
        wait_until(lambda: log.stat().st_size > 1000)
        files.append(log.rename(log.with_name(f"{log.name}.{number}")))
        client.runtime.ReopenContainerLog(
            api.ReopenContainerLogRequest(container_id=container), timeout=10
        )
        assert log.exists()
    pod.asks(container, "touch /enough")
    lines = int(pod.asks(container, "while ! test -s /count; do sleep 0.05; done; cat /count"))
    client.stop(container)
    everything = b"".join(written(file) for file in [*files, log])
    assert everything == b"".join(b"%d\n" % number for number in range(lines))


def test_reopened_log_is_a_new_file_that_gets_what_comes(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    script = "echo before; while ! test -e /go; do sleep 0.05; done; echo after; sleep 60"
    container = pod.start(pod.container("sh", "-c", script))
    log = log_of(client, container)
    wait_until(lambda: log_lines(log))
    old = log.with_name("old.log")
    log.rename(old)
    client.runtime.ReopenContainerLog(
        api.ReopenContainerLogRequest(container_id=container), timeout=10
    )
    assert log.stat().st_ino != old.stat().st_ino
    pod.asks(container, "touch /go")
    wait_until(lambda: log_lines(log))
    assert (written(old), written(log)) == (b"before\n", b"after\n")


def test_only_a_running_containers_log_can_be_reopened(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    status = pod.ends(pod.container("true"))
    with refused(grpc.StatusCode.FAILED_PRECONDITION, status.id, "exited"):
        client.runtime.ReopenContainerLog(
            api.ReopenContainerLogRequest(container_id=status.id), timeout=10
        )
    with refused(grpc.StatusCode.NOT_FOUND, "0" * 64):
        client.runtime.ReopenContainerLog(
            api.ReopenContainerLogRequest(container_id="0" * 64), timeout=10
        )


def test_container_without_a_log_path_runs_and_keeps_none(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    config = pod.container("sh", "-c", "yes | head -c 1000000; exec sleep 60")
    config.log_path = ""
    container = pod.start(config)
    assert client.status(container).status.log_path == ""
    with refused(grpc.StatusCode.FAILED_PRECONDITION, container, "log_path"):
        client.runtime.ReopenContainerLog(
            api.ReopenContainerLogRequest(container_id=container), timeout=10
        )
    assert client.exec(container, "true").exit_code == 0
