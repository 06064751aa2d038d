"""crictl about containers: create, start, ps, inspect, exec -s, logs, stats, stop, rm, run."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.conformance.scripts import TALKER, container, pod, started

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conformance.crictl import Crictl
    from tests.harness.daemon import Daemon

WAIT_S = 10.0


@pytest.fixture
def running(crictl: Crictl, daemon: Daemon, image: str) -> str:
    """A container that writes to both streams, then waits to be stopped."""
    _, container_id = started(crictl, daemon.pod_log_dir, image, TALKER)
    wait_until(lambda: crictl.streams("logs", container_id) == ("out\n", "err\n"))
    return container_id


def test_a_container_goes_from_created_to_running_to_exited_to_nothing(
    crictl: Crictl, daemon: Daemon, image: str
) -> None:
    pod_file = crictl.file(pod(daemon.pod_log_dir))
    pod_id = crictl("runp", pod_file)
    config = container(image, ["sleep", "100"])
    container_id = crictl("create", pod_id, crictl.file(config), pod_file)
    assert crictl("ps", "-q") == ""
    assert crictl("ps", "-q", "--state", "created") == container_id
    crictl("start", container_id)
    assert crictl("ps", "-q") == container_id
    crictl("stop", container_id)
    assert crictl("ps", "-q", "--state", "exited") == container_id
    assert crictl("rm", container_id) == container_id
    assert crictl("ps", "-aq") == ""


def test_the_table_of_containers_has_what_a_person_asks_for(
    crictl: Crictl, running: str, image: str
) -> None:
    (row,) = crictl.rows("ps")
    for part in (running[:13], "Running", "main", image):
        assert part in row


def test_containers_are_found_by_pod_label_image_and_name(
    crictl: Crictl, daemon: Daemon, image: str, running: str
) -> None:
    pod_file = crictl.file(pod(daemon.pod_log_dir))
    pod_id = crictl("runp", pod_file)
    config = container(image, ["sleep", "100"], labels={"tier": "front"})
    other = crictl("create", pod_id, crictl.file(config), pod_file)
    assert crictl("ps", "-aq", "--pod", pod_id[:13]) == other
    assert crictl("ps", "-aq", "--label", "tier=front") == other
    assert crictl("ps", "-aq", "--id", running[:13]) == running
    both = sorted([other, running])
    assert sorted(crictl("ps", "-aq", "--image", image).splitlines()) == both
    assert sorted(crictl("ps", "-aq", "--name", "^main$").splitlines()) == both


def test_inspect_shows_state_image_log_and_spec(
    crictl: Crictl, daemon: Daemon, running: str, image: str
) -> None:
    shown = crictl.json("inspect", running)
    status = shown["status"]
    assert status["state"] == "CONTAINER_RUNNING"
    assert status["image"]["image"] == image
    assert status["logPath"].startswith(str(daemon.pod_log_dir))
    assert status["logPath"].endswith("/main.log")
    assert shown["info"]["pid"] > 0
    assert shown["info"]["runtimeSpec"]["process"]["args"] == ["sh", "-c", TALKER]


def test_the_start_of_an_id_is_enough(crictl: Crictl, running: str) -> None:
    assert crictl.json("inspect", running[:10])["status"]["id"] == running


def test_exec_answers_what_the_command_printed(crictl: Crictl, running: str) -> None:
    assert crictl("exec", "-s", running, "sh", "-c", "echo one; echo two") == "one\ntwo"


def test_exec_tells_the_status_and_the_errors_of_a_command_that_failed(
    crictl: Crictl, running: str
) -> None:
    said = crictl.refusal("exec", "-s", running, "sh", "-c", "echo bad >&2; exit 7")
    assert "exited with 7: bad" in said


def test_exec_gives_up_at_its_timeout(crictl: Crictl, running: str) -> None:
    before = time.monotonic()
    said = crictl.refusal("exec", "-s", "--timeout", "1", running, "sleep", "30")
    assert "timed out after 1s" in said
    assert time.monotonic() - before < WAIT_S
    assert "sleep 30" not in crictl("exec", "-s", running, "ps")


def test_exec_of_a_command_that_is_not_there_names_it(crictl: Crictl, running: str) -> None:
    said = crictl.refusal("exec", "-s", running, "nonesuch")
    assert "'nonesuch'" in said
    assert "not found" in said


def test_logs_give_both_streams_apart_and_the_last_lines(crictl: Crictl, running: str) -> None:
    assert crictl.streams("logs", running) == ("out\n", "err\n")
    assert crictl.streams("logs", "--tail", "1", running) == ("", "err\n")
    assert crictl.streams("logs", "--since", "1h", running) == ("out\n", "err\n")
    stamped, _ = crictl.streams("logs", "--timestamps", running)
    assert stamped.split(" ")[1] == "out\n"


def test_followed_logs_end_with_the_container(crictl: Crictl, daemon: Daemon, image: str) -> None:
    script = "for i in 1 2 3; do echo line $i; sleep 0.3; done"
    _, container_id = started(crictl, daemon.pod_log_dir, image, script)
    assert crictl("logs", "-f", container_id).splitlines() == ["line 1", "line 2", "line 3"]


def test_stats_count_cpu_memory_and_the_writable_layer(crictl: Crictl, running: str) -> None:
    (stats,) = crictl.json("stats", running[:13])["stats"]
    assert stats["attributes"]["id"] == running
    assert int(stats["cpu"]["usageCoreNanoSeconds"]["value"]) > 0
    assert int(stats["memory"]["workingSetBytes"]["value"]) > 0
    assert int(stats["writableLayer"]["usedBytes"]["value"]) > 0
    (row,) = crictl.rows("stats")
    assert running[:13] in row


def test_pods_have_statistics_and_metrics(crictl: Crictl, running: str) -> None:
    pod_id = crictl.json("inspect", running)["info"]["sandboxID"]
    (stats,) = crictl.json("statsp", "--id", pod_id)["stats"]
    assert stats["attributes"]["id"] == pod_id
    assert int(stats["linux"]["cpu"]["usageCoreNanoSeconds"]["value"]) > 0
    assert stats["linux"]["network"]["defaultInterface"]["name"] == "eth0"
    (row,) = crictl.rows("statsp")
    assert pod_id[:13] in row
    assert len(crictl.json("metricdescs")["descriptors"]) == 56
    (metrics,) = crictl.json("metricsp")["podMetrics"]
    assert metrics["podSandboxId"] == pod_id
    assert [each["containerId"] for each in metrics["containerMetrics"]] == [running]


def test_stop_lets_the_process_end_itself_and_keeps_its_status(
    crictl: Crictl, running: str
) -> None:
    crictl("stop", "--timeout", "10", running)
    status = crictl.json("inspect", running)["status"]
    assert (status["state"], status["exitCode"], status["reason"]) == (
        "CONTAINER_EXITED",
        3,
        "Error",
    )


def test_stop_kills_what_does_not_listen(crictl: Crictl, daemon: Daemon, image: str) -> None:
    deaf = "trap '' TERM; while :; do sleep 1; done"
    _, container_id = started(crictl, daemon.pod_log_dir, image, deaf)
    crictl("stop", "--timeout", "1", container_id)
    assert crictl.json("inspect", container_id)["status"]["exitCode"] == 137


def test_a_container_that_ends_well_is_completed(
    crictl: Crictl, daemon: Daemon, image: str
) -> None:
    _, container_id = started(crictl, daemon.pod_log_dir, image, "exit 0")
    wait_until(lambda: crictl("ps", "-q", "--state", "exited") == container_id)
    status = crictl.json("inspect", container_id)["status"]
    assert (status["exitCode"], status["reason"]) == (0, "Completed")


def test_rm_of_a_running_container_wants_force(crictl: Crictl, running: str) -> None:
    assert "is running, please stop it first" in crictl.refusal("rm", running)
    crictl("rm", "-f", running)
    assert crictl("ps", "-aq") == ""


def test_run_pulls_creates_and_starts_in_one(crictl: Crictl, daemon: Daemon) -> None:
    name = "gcr.io/k8s-staging-cri-tools/test-image-1:latest"
    files = [
        crictl.file(container(name, ["sleep", "100"])),
        crictl.file(pod(daemon.pod_log_dir)),
    ]
    assert crictl("run", *files) == crictl("ps", "-q")
    daemon.client.remove_all_pods()
    crictl("rmi", name)


def test_what_a_container_can_not_do_now_is_refused_with_its_state(
    crictl: Crictl, running: str
) -> None:
    said = crictl.refusal("start", running)
    assert "FailedPrecondition" in said
    assert "running" in said
    crictl("stop", running)
    said = crictl.refusal("exec", "-s", running, "true")
    assert "FailedPrecondition" in said
    assert "exited" in said


def test_unknown_containers_are_not_found(crictl: Crictl) -> None:
    for command in (
        ["inspect", "nonesuch"],
        ["start", "nonesuch"],
        ["logs", "nonesuch"],
        ["rm", "nonesuch"],
        ["exec", "-s", "nonesuch", "true"],
    ):
        said = crictl.refusal(*command)
        assert "NotFound" in said, command
        assert "container 'nonesuch' not found" in said, command


def test_stop_of_an_unknown_container_is_done(crictl: Crictl) -> None:
    assert crictl("stop", "nonesuch") == "nonesuch"


def test_containers_that_can_not_be_made_are_refused_with_the_reason(
    crictl: Crictl, daemon: Daemon, image: str
) -> None:
    pod_file = crictl.file(pod(daemon.pod_log_dir))
    pod_id = crictl("runp", pod_file)

    def refusal(config: object) -> str:
        return crictl.refusal("create", "--no-pull", pod_id, crictl.file(config), pod_file)

    assert "error converting YAML to JSON" in refusal("{nonsense")
    said = refusal(container("example.org/nonesuch:1", ["true"]))
    assert "NotFound" in said
    assert "example.org/nonesuch:1" in said
    # A directory that is missing would be made; below a file there can be none.
    no_source = {"container_path": "/data", "host_path": f"{pod_file}/dir"}
    said = refusal(container(image, ["true"], mounts=[no_source]))
    assert "mounts[0].host_path" in said
    assert f"{pod_file}/dir" in said


def test_a_command_that_is_not_there_fails_the_start_by_name(
    crictl: Crictl, daemon: Daemon, image: str
) -> None:
    pod_file = crictl.file(pod(daemon.pod_log_dir))
    pod_id = crictl("runp", pod_file)
    config = crictl.file(container(image, ["/nonesuch/command"]))
    created = crictl("create", pod_id, config, pod_file)
    assert "/nonesuch/command" in crictl.refusal("start", created)
    # So a kubelet sees a container that failed, and backs off.
    status = json.loads(crictl("inspect", created))["status"]
    assert (status["state"], status["exitCode"]) == ("CONTAINER_EXITED", 128)
    assert status["reason"] == "StartError"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.1)
