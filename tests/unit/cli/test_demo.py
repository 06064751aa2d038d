"""The demo, with demo_pod, demo_proofs and demo_requests, against a daemon in memory."""

from __future__ import annotations

import argparse
import http.server
import io
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim.cli import demo, demo_pod, demo_proofs
from cri_shim.cli import demo_requests as requests
from cri_shim.cli.demo_screen import Screen
from cri_shim.errors import CriShimError, PermissionRefusedError
from tests.fakes.clock import block_until
from tests.unit.cli.fake_daemon import IMAGE_ID, IP, FakeDaemon, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cri_shim.rpc.client import Client


@pytest.fixture(autouse=True)
def _node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node with a busybox, a place for logs, and nobody listening where a pod would."""
    program = tmp_path / "busybox"
    program.write_bytes(b"a static program")
    monkeypatch.setattr("cri_shim.image.builtin.BUSYBOX", program)
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(demo_pod, "LOG_ROOT", tmp_path / "run")
    monkeypatch.setattr(demo_proofs, "WAIT_S", 0.1)


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> FakeDaemon:
    daemon = FakeDaemon()

    def fetch(ip: str) -> str:
        daemon.calls.append(f"GET {ip}")
        [config] = daemon.sandboxes.values()
        return requests.greeting(config.metadata.name)

    monkeypatch.setattr(demo_proofs, "fetch", fetch)
    return daemon


@pytest.fixture
def client(daemon: FakeDaemon, tmp_path: Path) -> Iterator[Client]:
    with serving(daemon, tmp_path) as client:
        yield client


def run(client: Client, *, keep: bool = False) -> tuple[int, str]:
    stream = io.StringIO()
    code = demo.Demo(client, Screen(stream)).run(keep=keep)
    return code, stream.getvalue()


def failure(client: Client) -> str:
    with pytest.raises(CriShimError) as caught:
        run(client)
    return str(caught.value)


def nothing_is_left(daemon: FakeDaemon) -> bool:
    return not (
        daemon.sandboxes or daemon.containers or daemon.images or any(demo_pod.LOG_ROOT.iterdir())
    )


def test_every_step_is_shown_and_nothing_is_left(daemon: FakeDaemon, client: Client) -> None:
    code, shown = run(client)
    assert code == 0
    for text in (
        f"cri-shim 1.2.3 on {client.socket_path}, runc 9.9",
        "localhost/cri-shim-demo:1, 2.0 MiB, built from this node's busybox",
        f"is ready, IP {IP} on network pods",
        "stdout F hello from pod hello-",
        "stderr F and hello-",
        f"eth0 has {IP}/24",
        f"http://{IP}:8080/ answers: hello from pod",
        "CPU 25.0 ms, memory 1.0 MiB, disk 4.0 KiB",
        "container, pod, network namespace, image and log are removed",
        "the demo succeeded in 0.",
    ):
        assert text in shown
    assert nothing_is_left(daemon)
    assert "StopContainer" in daemon.calls


def test_the_container_is_nobodys_and_can_gain_nothing() -> None:
    context = requests.container_config("p").linux.security_context
    assert context.run_as_user.value == context.run_as_group.value == requests.NOBODY
    assert context.no_new_privs
    assert not context.privileged
    assert list(context.capabilities.drop_capabilities) == ["ALL"]


def test_a_pod_with_two_addresses_must_have_both_inside(daemon: FakeDaemon, client: Client) -> None:
    daemon.ips = (IP, "fd00::7")
    _, shown = run(client)
    assert f"eth0 has {IP}/24, fd00::7/64" in shown


def test_a_kept_pod_stays_and_the_way_to_look_at_it_is_told(
    daemon: FakeDaemon, client: Client
) -> None:
    code, shown = run(client, keep=True)
    assert code == 0
    assert list(daemon.running) == ["c0"]
    assert f"export CONTAINER_RUNTIME_ENDPOINT=unix://{client.socket_path}" in shown
    assert "crictl logs c0\n" in shown
    take_away = shown.partition("remove it with:\n")[2].split("\n")
    assert [line.split()[-2:] for line in take_away if line] == [
        ["-f", "5a"],
        ["rmi", requests.IMAGE],
        ["-r", str(next(demo_pod.LOG_ROOT.iterdir()))],
    ]


def test_an_image_that_was_there_is_used_and_stays(daemon: FakeDaemon, client: Client) -> None:
    daemon.images = {IMAGE_ID: {requests.IMAGE}}
    _, shown = run(client)
    assert "already present" in shown
    assert "ImportImage" not in daemon.calls
    assert daemon.images == {IMAGE_ID: {requests.IMAGE}}
    assert "pod, network namespace and log are removed" in shown


def test_an_image_whose_content_had_another_name_stays(daemon: FakeDaemon, client: Client) -> None:
    daemon.images = {IMAGE_ID: {"example.com/busybox:1"}}
    run(client)
    assert "example.com/busybox:1" in daemon.images[IMAGE_ID]
    assert "RemoveImage" not in daemon.calls


@pytest.mark.parametrize(
    ("call", "step"),
    [
        ("Info", "step 1 of 9, daemon"),
        ("Status", "step 1 of 9, daemon"),
        ("ListImages", "step 2 of 9, image"),
        ("ImportImage", "step 2 of 9, image"),
        ("RunPodSandbox", "step 3 of 9, pod"),
        ("PodSandboxStatus", "step 3 of 9, pod"),
        ("CreateContainer", "step 4 of 9, container"),
        ("StartContainer", "step 4 of 9, container"),
        ("ExecSync", "step 6 of 9, exec"),
        ("ContainerStats", "step 8 of 9, stats"),
        ("StopContainer", "step 9 of 9, removal"),
    ],
)
def test_a_call_that_fails_ends_the_demo_and_nothing_is_left(
    daemon: FakeDaemon, client: Client, call: str, step: str
) -> None:
    daemon.failures[call] = grpc.StatusCode.INTERNAL
    message = failure(client)
    assert message.startswith(f"the demo failed at {step}: ")
    assert f"{call} is broken" in message
    assert "; `cri-shim check`" in message or "; the daemon's log says more" in message
    assert nothing_is_left(daemon)


def test_a_network_that_is_not_ready_is_told_in_the_daemons_words(
    daemon: FakeDaemon, client: Client
) -> None:
    daemon.network_message = "put a .conflist into /etc/cni/net.d"
    assert "NetworkReady is false: put a .conflist into /etc/cni/net.d" in failure(client)
    assert "RunPodSandbox" not in daemon.calls


def test_a_sandbox_that_a_failed_creation_left_is_found_and_removed(
    daemon: FakeDaemon, client: Client
) -> None:
    daemon.failures["RunPodSandbox"] = grpc.StatusCode.INTERNAL
    daemon.leaves_broken_sandbox = True
    assert "RunPodSandbox is broken" in failure(client)
    assert daemon.calls.count("RunPodSandbox") == 1
    assert nothing_is_left(daemon)


def test_a_creation_that_was_given_up_is_joined_and_its_sandbox_removed(
    daemon: FakeDaemon, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_pod, "POD_TIMEOUT_S", 0.1)
    # The daemon goes on after the client's deadline, and answers the second call with the first one's sandbox.
    asked_again = threading.Event()

    def create() -> None:
        if daemon.calls.count("RunPodSandbox") == 1:
            assert asked_again.wait(10)
        else:
            asked_again.set()
            block_until(lambda: daemon.sandboxes)

    daemon.on_call["RunPodSandbox"] = create
    assert "step 3 of 9, pod: cannot run the pod: Deadline Exceeded" in failure(client)
    assert daemon.calls.count("RunPodSandbox") == 2
    assert nothing_is_left(daemon)


@pytest.mark.parametrize(
    ("ip", "message"),
    [
        ("", "no IP address"),
        ("127.0.0.5", "not usable for a pod"),
        ("0.0.0.0", "not usable for a pod"),
    ],
)
def test_an_address_that_no_pod_can_have_is_refused(
    daemon: FakeDaemon, client: Client, ip: str, message: str
) -> None:
    daemon.ips = (ip,)
    assert message in failure(client)
    assert nothing_is_left(daemon)


def test_a_log_that_says_something_else_is_refused(daemon: FakeDaemon, client: Client) -> None:
    daemon.stdout = "hello from somebody else"
    assert "step 5 of 9, log: the log has other lines" in failure(client)
    assert nothing_is_left(daemon)


def test_lines_that_never_reach_the_log_are_missed(
    daemon: FakeDaemon, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_pod.DemoPod, "log_file", Path("/nonexistent/hello.log"))
    assert "its lines did not reach /nonexistent/hello.log within" in failure(client)
    assert nothing_is_left(daemon)


def test_a_container_that_ends_at_once_is_told_with_its_last_words(
    daemon: FakeDaemon, client: Client
) -> None:
    daemon.exit_code_at_start = 127
    message = failure(client)
    assert "container c0 ended with exit code 127 (Error); it wrote: hello from pod" in message
    assert nothing_is_left(daemon)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("other\n65534\n", "sees host name 'other'"),
        ("", "sees host name ''"),
        ("{pod}\n0\n", "and user '0'"),
        (
            "{pod}\n65534\n    inet 10.9.9.9/24 scope global eth0\n",
            f"has {IP}, but its eth0 has 10.9.9.9/24",
        ),
        ("{pod}\n65534\n", "but its eth0 has no address"),
    ],
)
def test_a_command_that_sees_another_pod_is_refused(
    daemon: FakeDaemon, client: Client, answer: str, message: str
) -> None:
    def answer_for_this_pod() -> None:
        [config] = daemon.sandboxes.values()
        daemon.answer = answer.format(pod=config.metadata.name)

    daemon.on_call["ExecSync"] = answer_for_this_pod
    assert message in failure(client)
    assert nothing_is_left(daemon)


def test_a_command_that_fails_is_told_with_its_complaint(
    daemon: FakeDaemon, client: Client
) -> None:
    daemon.exec_exit_code = 3
    assert "ended with exit code 3: oh no" in failure(client)


def test_a_page_of_somebody_else_is_refused(
    daemon: FakeDaemon, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_proofs, "fetch", lambda _ip: "a router's page")
    message = failure(client)
    assert f'http://{IP}:8080/ answered "a router\'s page"' in message
    assert "firewall" in message
    assert nothing_is_left(daemon)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (TimeoutError("timed out"), "cannot fetch http://10.1.2.3:8080/ from this node: timed out"),
        (ConnectionRefusedError(), "nothing listens at http://10.1.2.3:8080/ within"),
    ],
)
def test_a_pod_that_this_node_can_not_reach_is_told(
    daemon: FakeDaemon,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
    message: str,
) -> None:
    def fetch(_ip: str) -> str:
        raise error

    monkeypatch.setattr(demo_proofs, "fetch", fetch)
    assert message in failure(client)
    assert nothing_is_left(daemon)


def test_a_page_is_fetched_past_any_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello\n" + b"x" * demo_proofs.MAX_PAGE_BYTES)

        def log_message(self, *_: object) -> None:
            """The test's output is none of the server's business."""

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        monkeypatch.setattr(requests, "PORT", server.server_port)
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        page = demo_proofs.fetch("127.0.0.1")
        thread.join()
    assert page.startswith("hello\nx")
    assert len(page) == demo_proofs.MAX_PAGE_BYTES


def test_what_the_node_does_not_account_is_not_shown(daemon: FakeDaemon, client: Client) -> None:
    daemon.memory_bytes = None
    _, shown = run(client)
    assert "CPU 25.0 ms, disk 4.0 KiB" in shown


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("cpu_ns", 0, "CPU usage is 0"),
        ("memory_bytes", 0, "memory usage is 0"),
        ("layer_bytes", 0, "writable layer is empty in ContainerStats"),
    ],
)
def test_statistics_that_can_not_be_are_refused(
    daemon: FakeDaemon, client: Client, field: str, value: int, message: str
) -> None:
    setattr(daemon, field, value)
    assert message in failure(client)


def test_a_node_that_accounts_nothing_fails(daemon: FakeDaemon, client: Client) -> None:
    daemon.cpu_ns = daemon.memory_bytes = None
    assert "neither CPU nor memory" in failure(client)


def test_a_stop_that_had_to_kill_is_told(daemon: FakeDaemon, client: Client) -> None:
    daemon.exit_code_at_stop = 137
    assert "ended with exit code 137 (Error) after its stop, but it exits with 0" in failure(client)
    assert nothing_is_left(daemon)


def test_a_removal_that_removes_nothing_is_found_out(daemon: FakeDaemon, client: Client) -> None:
    daemon.forgets_nothing = True
    message = failure(client)
    assert (
        f"still present after the removal: sandbox 5a, container c0, image {requests.IMAGE}"
        in message
    )


def test_what_can_not_be_taken_away_is_told_with_the_commands_that_do(
    daemon: FakeDaemon, client: Client
) -> None:
    daemon.failures = {
        "ExecSync": grpc.StatusCode.INTERNAL,
        "StopPodSandbox": grpc.StatusCode.UNAVAILABLE,
    }
    message = failure(client)
    assert message.startswith("the demo failed at step 6 of 9, exec: ")
    assert "not everything could be removed: cannot remove sandbox 5a" in message
    assert message.endswith(
        f"remove what is left with: crictl -r unix://{client.socket_path} rmp -f 5a"
    )
    assert not daemon.images, "one failure does not keep the rest"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("call", ["ImportImage", "RunPodSandbox", "StartContainer", "ExecSync"])
def test_a_signal_ends_the_demo_after_the_step_and_nothing_is_left(
    daemon: FakeDaemon,
    client: Client,
    capfd: pytest.CaptureFixture[str],
    call: str,
    number: signal.Signals,
) -> None:
    daemon.on_call[call] = lambda: os.kill(os.getpid(), number)
    code, shown = run(client)
    assert code == 128 + number
    assert "interrupted: waiting for the running step" in capfd.readouterr().err
    assert shown.endswith("interrupted; everything that was created is removed again\n")
    assert nothing_is_left(daemon)


def test_a_signal_ends_a_wait(daemon: FakeDaemon, client: Client) -> None:
    def stop_and_hide_the_log() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        daemon.log_file(daemon.containers["c0"]).unlink()

    daemon.on_call["ContainerStatus"] = stop_and_hide_the_log
    code, _ = run(client)
    assert code == 130
    assert nothing_is_left(daemon)


def test_a_second_signal_leaves_at_once_and_tells_what_is_left(
    daemon: FakeDaemon, client: Client
) -> None:
    def twice() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)

    daemon.on_call["RunPodSandbox"] = twice
    message = failure(client)
    assert message.startswith("interrupted twice; remove what is left with: ")
    assert "pods -q --label demo=hello-" in message
    assert f"rmi {requests.IMAGE}" in message


def test_a_terminal_that_goes_away_leaves_nothing_behind(
    daemon: FakeDaemon, client: Client
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            if "[5/9]" in text:
                raise BrokenPipeError
            return len(text)

    with pytest.raises(BrokenPipeError):
        demo.Demo(client, Screen(Gone())).run(keep=False)
    assert nothing_is_left(daemon)


def test_only_root_may_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(PermissionRefusedError, match="use sudo"):
        demo.run(argparse.Namespace(keep=False))
