"""crictl's streams: exec, attach and port-forward, over SPDY and over WebSocket."""

from __future__ import annotations

import os
import termios
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.conformance.scripts import container, pod, started

if TYPE_CHECKING:
    from tests.conformance.crictl import Crictl
    from tests.harness.daemon import Daemon

BOTH = pytest.mark.parametrize("transport", ["spdy", "websocket"])


@BOTH
def test_exec_has_both_outputs_and_the_status(
    crictl: Crictl, daemon: Daemon, image: str, transport: str
) -> None:
    _, running = started(crictl, daemon.pod_log_dir, image, "sleep 100")
    script = "echo out; echo err >&2"
    run = ("exec", "--transport", transport)
    assert crictl.streams(*run, running, "sh", "-c", script) == ("out\n", "err\n")
    assert "exit code 7" in crictl.refusal(*run, running, "sh", "-c", "exit 7")
    # As in a shell; the runtime's words come on standard error.
    assert "exit code 127" in crictl.refusal(*run, running, "nonesuch")


@BOTH
def test_exec_takes_input_to_its_end(
    crictl: Crictl, daemon: Daemon, image: str, transport: str
) -> None:
    _, running = started(crictl, daemon.pod_log_dir, image, "sleep 100")
    reading, writing = os.pipe()
    os.write(writing, b"3\n1\n2\n")
    os.close(writing)
    with crictl.going(
        "exec", "-i", "--transport", transport, running, "sort", stdin=reading
    ) as sort:
        os.close(reading)
        sort.until("1\n2\n3\n")
        assert sort.process.wait(10) == 0


@BOTH
def test_a_shell_on_a_terminal_follows_its_size(
    crictl: Crictl, daemon: Daemon, image: str, transport: str
) -> None:
    _, running = started(crictl, daemon.pod_log_dir, image, "sleep 100")
    command = ("exec", "-it", "--transport", transport, running, "sh")
    with crictl.going(*command, terminal=True) as shell:
        shell.until("#")
        termios.tcsetwinsize(shell.fd, (33, 99))
        shell.type("sleep 0.3; stty size\n")
        shell.until("33 99")
        termios.tcsetwinsize(shell.fd, (44, 155))
        shell.type("sleep 0.3; stty size\n")
        shell.until("44 155")
        shell.type("exit 5\n")
        shell.until("exit code 5")


@BOTH
def test_attach_shows_what_comes_and_types_into_it(
    crictl: Crictl, daemon: Daemon, image: str, transport: str
) -> None:
    pod_file = crictl.file(pod(daemon.pod_log_dir))
    pod_id = crictl("runp", pod_file)
    config = container(image, ["sh"], tty=True, stdin=True)
    container_id = crictl("create", pod_id, crictl.file(config), pod_file)
    crictl("start", container_id)
    command = ("attach", "-it", "--transport", transport, container_id)
    with crictl.going(*command, terminal=True) as terminal:
        terminal.type("echo $((20+22))\n")
        terminal.until("42")
    assert crictl("ps", "-q") == container_id


@BOTH
def test_a_forwarded_port_serves_one_client_after_the_other(
    crictl: Crictl, daemon: Daemon, image: str, transport: str
) -> None:
    serve = "mkdir /www; echo inside > /www/f; exec httpd -f -p 127.0.0.1:80 -h /www"
    pod_id, running = started(crictl, daemon.pod_log_dir, image, serve)
    crictl("exec", "-s", running, "sh", "-c", "until nc 127.0.0.1 80 </dev/null; do :; done")
    with crictl.going("port-forward", "--transport", transport, pod_id, "0:80") as forward:
        forward.until("-> 80")
        port = forward.said.split(" -> 80")[0].rpartition(":")[2]
        for _ in range(20):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/f", timeout=10) as answer:
                assert answer.read() == b"inside\n"
