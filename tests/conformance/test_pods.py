"""crictl about pods: runp, pods, inspectp, stopp, rmp."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from tests.conformance.scripts import pod, started

if TYPE_CHECKING:
    from tests.conformance.crictl import Crictl
    from tests.harness.daemon import Daemon


STEPS = ("CREATED", "STARTED", "STOPPED", "DELETED")
TOLD = "{{.containerId}} {{.containerEventType}}{{range .containersStatuses}} {{.exitCode}}{{end}}"


def test_a_pod_goes_from_ready_to_not_ready_to_nothing(crictl: Crictl, daemon: Daemon) -> None:
    pod_id = crictl("runp", crictl.file(pod(daemon.pod_log_dir)))
    assert crictl("pods", "-q", "--state", "ready") == pod_id
    assert crictl("stopp", pod_id) == f"Stopped sandbox {pod_id}"
    assert crictl("pods", "-q", "--state", "notready") == pod_id
    assert crictl("rmp", pod_id) == f"Removed sandbox {pod_id}"
    assert crictl("pods", "-q") == ""


def test_pods_are_found_by_name_namespace_label_and_id(crictl: Crictl, daemon: Daemon) -> None:
    config, other = pod(daemon.pod_log_dir), pod(daemon.pod_log_dir)
    pod_id, other_id = crictl("runp", crictl.file(config)), crictl("runp", crictl.file(other))
    name = config["metadata"]["name"]
    assert crictl("pods", "-q", "--name", f"^{name}$") == pod_id
    assert crictl("pods", "-q", "--label", f"app={name}") == pod_id
    assert crictl("pods", "-q", "--id", pod_id[:12]) == pod_id
    listed = crictl("pods", "-q", "--no-trunc", "--namespace", "^scripts$").splitlines()
    assert sorted(listed) == sorted([pod_id, other_id])


def test_the_table_of_pods_has_what_a_person_asks_for(crictl: Crictl, daemon: Daemon) -> None:
    config = pod(daemon.pod_log_dir)
    pod_id = crictl("runp", crictl.file(config))
    (row,) = crictl.rows("pods")
    for part in (pod_id[:13], "Ready", config["metadata"]["name"], "scripts", "runc"):
        assert part in row


def test_running_the_same_pod_again_answers_the_same_pod(crictl: Crictl, daemon: Daemon) -> None:
    file = crictl.file(pod(daemon.pod_log_dir))
    assert crictl("runp", file) == crictl("runp", file)


def test_inspectp_shows_address_namespace_and_metadata(crictl: Crictl, daemon: Daemon) -> None:
    config = pod(daemon.pod_log_dir, annotations={"note": "kept"})
    pod_id = crictl("runp", crictl.file(config))
    shown = crictl.json("inspectp", pod_id)
    status = shown["status"]
    assert status["metadata"] == config["metadata"]
    assert (status["labels"], status["annotations"]) == (config["labels"], {"note": "kept"})
    assert status["state"] == "SANDBOX_READY"
    assert ip_address(status["network"]["ip"]) in ip_network(daemon.subnet)
    assert shown["info"]["netns"] == f"/run/netns/cri-{pod_id[:32]}"


def test_rmp_with_force_takes_a_running_pod_and_its_containers(
    crictl: Crictl, daemon: Daemon, image: str
) -> None:
    pod_id, _ = started(crictl, daemon.pod_log_dir, image, "sleep 100")
    assert "is running, please stop it first" in crictl.refusal("rmp", pod_id)
    crictl("rmp", "-f", pod_id)
    assert crictl("ps", "-aq") == ""


def test_stopp_is_content_with_what_is_stopped_or_gone(crictl: Crictl, daemon: Daemon) -> None:
    pod_id = crictl("runp", crictl.file(pod(daemon.pod_log_dir)))
    crictl("stopp", pod_id)
    crictl("stopp", pod_id)
    crictl("rmp", pod_id)
    crictl("stopp", pod_id)


def test_events_tell_of_a_pods_life_as_it_happens(
    crictl: Crictl, daemon: Daemon, image: str
) -> None:
    with crictl.going("events", "-o", "go-template", "--template", TOLD) as events:
        warm_up = crictl.file(pod(daemon.pod_log_dir))
        while "CREATED" not in events.said:  # until it has subscribed
            crictl("rmp", "-f", crictl("runp", warm_up))
            events.read()
        pod_id, container_id = started(crictl, daemon.pod_log_dir, image, "exit 3")
        events.until(f"{container_id} CONTAINER_STOPPED_EVENT 3")
        crictl("rmp", "-f", pod_id)
        events.until(f"{pod_id} CONTAINER_DELETED_EVENT")
    for object_id in (pod_id, container_id):
        told = [line.split()[1] for line in events.said.splitlines() if line.startswith(object_id)]
        assert told == [f"CONTAINER_{step}_EVENT" for step in STEPS]


def test_unknown_pods_are_not_found(crictl: Crictl) -> None:
    for command in ("inspectp", "rmp"):
        said = crictl.refusal(command, "nonesuch")
        assert "NotFound" in said
        assert "sandbox 'nonesuch' not found" in said


def test_pod_configurations_that_make_no_sense_are_refused(crictl: Crictl, daemon: Daemon) -> None:
    assert "load podSandboxConfig" in crictl.refusal("runp", crictl.file("{nonsense"))
    bold = pod(daemon.pod_log_dir, linux={"sysctls": {"vm.swappiness": "1"}})
    assert "vm.swappiness" in crictl.refusal("runp", crictl.file(bold))
    said = crictl.refusal("runp", "--runtime", "nonesuch", crictl.file(pod(daemon.pod_log_dir)))
    assert "nonesuch" in said
    assert "InvalidArgument" in said
    assert crictl("pods", "-q") == ""
