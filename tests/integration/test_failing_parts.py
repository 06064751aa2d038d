"""Parts that fail, hang or talk nonsense: who did is named, in its own words, and nothing stays of what was begun.

The daemon of this module stands between parts that a test may break: its network's one plugin is scripted, its runtime
and its monitor are programs that a test may replace. `leak_guard` is around every test here.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.fakes.cni_plugin import install_plugin
from tests.harness.slowness import SLOWNESS
from tests.integration.scene import (
    Pod,
    cgroups_of,
    processes_running,
    refused,
    unique_seconds,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon, Daemons

pytestmark = pytest.mark.integration

SECONDS = unique_seconds()
"""What everything that hangs here sleeps."""
PLUGIN_S, RUNTIME_S = 1.0 * SLOWNESS, 2.0 * SLOWNESS
"""How long this daemon waits for a plugin, and for a runtime."""


class Parts:
    """A daemon between parts that can be made to fail, and to work again."""

    def __init__(self, daemon: Daemon, directory: Path) -> None:
        self.daemon = daemon
        self.script = directory / "script.json"
        self.plugin_dir = directory / "plugins"
        self.verb_dir = directory / "verbs"
        self.runtime = directory / "runtime"
        self.monitor = directory / "monitor"
        self.leases = daemon.lease_dir
        for made in (self.verb_dir, self.leases):
            made.mkdir()
        install_plugin(self.plugin_dir, "scripted")
        self.runtime.write_text(
            f'#!/bin/sh\nfor w; do [ -f {self.verb_dir}/"$w" ] && . {self.verb_dir}/"$w"; done\n'
            'exec runc "$@"\n'
        )
        self.runtime.chmod(0o755)
        self.repair()
        daemon.write_conflist(self.conflist("scripted"))

    def conflist(self, plugin: str, version: str = "1.0.0") -> dict[str, Any]:
        plugins = [{"type": plugin, "script_file": str(self.script)}]
        return {"cniVersion": version, "name": self.daemon.name, "plugins": plugins}

    def repair(self) -> None:
        """Everything works again."""
        self.plugin()
        for file in self.verb_dir.iterdir():
            file.unlink()
        self.monitor.unlink(missing_ok=True)
        found = shutil.which("conmon")
        assert found is not None
        self.monitor.symlink_to(found)

    def plugin(self, **verbs: dict[str, object]) -> None:
        """What the plugin does from now on, by verb."""
        unfinished = self.script.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({"leases": str(self.leases), **verbs}))
        unfinished.rename(self.script)

    def runtime_at(self, verb: str, script: str) -> None:
        """What the runtime does at `verb` from now on."""
        (self.verb_dir / verb).write_text(script)

    def replace_monitor(self, script: str) -> None:
        self.monitor.unlink()
        self.monitor.write_text(f"#!/bin/sh\n{script}\n")
        self.monitor.chmod(0o755)


@pytest.fixture(scope="module")
def failing_daemon(
    daemons: Daemons, archives: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Parts]:
    directory = tmp_path_factory.mktemp("parts")
    daemon = daemons.create(
        settings={
            "cni": {"plugin_dirs": [str(directory / "plugins")], "timeout": f"{PLUGIN_S:g}s"},
            "runtime": {
                "handlers": {
                    "runc": {"path": str(directory / "runtime")},
                    "absent": {"path": str(directory / "no-such-runtime")},
                },
                "monitor": str(directory / "monitor"),
                "command_timeout": f"{RUNTIME_S:g}s",
                "start_timeout": f"{RUNTIME_S:g}s",
            },
        }
    )
    try:
        parts = Parts(daemon, directory)
        daemon.start()
        daemon.warm_up(archives)
        yield parts
    finally:
        daemons.destroy(daemon)


@pytest.fixture
def parts(failing_daemon: Parts) -> Iterator[Parts]:
    """The parts, working; what a test breaks is repaired before its pods are taken away."""
    yield failing_daemon
    failing_daemon.repair()
    failing_daemon.daemon.write_conflist(failing_daemon.conflist("scripted"))
    wait_until(lambda: network_ready(failing_daemon).status)
    failing_daemon.daemon.client.remove_all_pods()


@pytest.fixture
def broken(parts: Parts) -> Client:
    """The client of the daemon with the failing parts."""
    return parts.daemon.client


def node_condition(parts: Parts, kind: str) -> api.RuntimeCondition:
    status = parts.daemon.client.runtime.Status(api.StatusRequest(), timeout=10).status
    (condition,) = [each for each in status.conditions if each.type == kind]
    return condition


def network_ready(parts: Parts) -> api.RuntimeCondition:
    return node_condition(parts, "NetworkReady")


def pending_deletes(parts: Parts) -> list[dict[str, Any]]:
    info = parts.daemon.client.runtime.Status(api.StatusRequest(verbose=True), timeout=10).info
    found: list[dict[str, Any]] = json.loads(info["cni"])["pendingDeletes"]
    return found


def metrics_page(parts: Parts) -> str:
    address = f"http://127.0.0.1:{parts.daemon.metrics_port}/metrics"
    with urllib.request.urlopen(address, timeout=10) as answer:
        page: bytes = answer.read()
    return page.decode()


def leases(parts: Parts) -> list[str]:
    return [path.name for path in parts.leases.iterdir()]


# --- the network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ({"do": "fail", "code": 11, "msg": "no room", "details": "at all"}, ("no room", "11")),
        ({"do": "fail", "msg": "early", "after_effect": False}, ("early",)),
        ({"do": "die", "stderr": "it hurts\n", "status": 3}, ("status 3", "it hurts")),
        ({"do": "garbage", "text": "not json"}, ()),
        ({"do": "silent"}, ()),
        ({"do": "flood", "bytes": 8 << 20}, ()),
        ({"do": "crash"}, ("SIGSEGV",)),
        ({"do": "succeed", "result": {"cniVersion": "9.9.9", "ips": "none"}}, ()),
    ],
    ids=["fails", "fails early", "dies", "garbage", "silent", "floods", "crashes", "bad result"],
)
def test_plugin_that_fails_is_named_and_what_it_did_is_undone(
    parts: Parts, broken: Client, behaviour: dict[str, object], words: tuple[str, ...]
) -> None:
    parts.plugin(ADD=behaviour)
    with refused(grpc.StatusCode.UNAVAILABLE, "scripted", "ADD", *words):
        broken.run_pod(broken.pod_config())
    assert broken.pods() == []
    assert leases(parts) == []


def test_plugin_that_hangs_is_given_up_at_its_deadline(parts: Parts, broken: Client) -> None:
    parts.plugin(ADD={"do": "hang", "helper": True})
    started = time.monotonic()
    with refused(grpc.StatusCode.UNAVAILABLE, "scripted", "ADD", f"{PLUGIN_S:g} s"):
        broken.run_pod(broken.pod_config())
    assert PLUGIN_S <= time.monotonic() - started < 8 * SLOWNESS
    assert broken.pods() == []
    assert leases(parts) == []


def test_pod_can_be_run_once_the_plugin_works_again(
    parts: Parts, broken: Client, image: str
) -> None:
    config = broken.pod_config()
    parts.plugin(ADD={"do": "fail"})
    with refused(grpc.StatusCode.UNAVAILABLE):
        broken.run_pod(config)
    parts.plugin()
    pod = Pod.run(broken, image, config)
    assert pod.ip == "10.9.0.2"
    assert len(leases(parts)) == 1


def test_pod_whose_network_does_not_let_go_ends_all_the_same_and_its_delete_is_pending(
    parts: Parts, broken: Client, image: str
) -> None:
    pod = Pod.run(broken, image)
    container = pod.sleeper()
    parts.plugin(DEL={"do": "fail", "msg": "can't let go", "after_effect": False})
    broken.stop_pod(pod.id)
    assert broken.status(container).status.state == api.CONTAINER_EXITED
    assert [each.state for each in broken.pods()] == [api.SANDBOX_NOTREADY]
    broken.remove_pod(pod.id)
    assert (broken.pods(), cgroups_of(pod.id)) == ([], [])
    # What the plugin holds is known, shown, and what it needs to let go is there still.
    assert (len(leases(parts)), pod.netns.exists()) == (1, True)
    (pending,) = pending_deletes(parts)
    assert (pending["sandbox"], pending["network"]) == (pod.id, parts.daemon.name)
    assert "can't let go" in pending["error"]
    assert "cri_shim_cni_pending_deletes 1.0" in metrics_page(parts)
    assert "can't let go" in parts.daemon.cli("check", check=False).stdout
    parts.plugin()
    wait_until(lambda: not pending_deletes(parts))
    wait_until(lambda: not pod.netns.exists())
    assert leases(parts) == []
    assert "cri_shim_cni_pending_deletes 0.0" in metrics_page(parts)


def test_what_is_pending_outlives_the_daemon_and_garbage_is_collected_at_its_start(
    parts: Parts, broken: Client, image: str
) -> None:
    parts.daemon.write_conflist(parts.conflist("scripted", version="1.1.0"))
    pod, stays = Pod.run(broken, image), Pod.run(broken, image)
    parts.plugin(DEL={"do": "crash", "after_effect": False})
    broken.remove_pod(pod.id)
    (parts.leases / "lost-eth0").touch()
    parts.daemon.kill9()
    parts.daemon.start()
    # GC gives back what belongs to no pod; the DEL is pending all the same.
    wait_until(lambda: leases(parts) == [f"{stays.id}-eth0"])
    assert [pending["sandbox"] for pending in pending_deletes(parts)] == [pod.id]
    assert broken.pod_status(stays.id).status.state == api.SANDBOX_READY
    parts.plugin()
    parts.daemon.reload()
    wait_until(lambda: not pending_deletes(parts))
    wait_until(lambda: not pod.netns.exists())


def test_plugin_that_fails_at_every_verb_in_whatever_way_leaves_nothing_in_the_end(
    parts: Parts, broken: Client
) -> None:
    behaviours: list[dict[str, object]] = [
        {"do": "fail"},
        {"do": "crash"},
        {"do": "flood", "bytes": 2 << 20},
        {"do": "garbage", "status": 1},
        {"do": "hang", "helper": True},
    ]
    for step in behaviours:
        never = {**step, "after_effect": False}
        parts.plugin(ADD=step, DEL=never, CHECK=never, GC=never, STATUS=never)
        with refused(grpc.StatusCode.UNAVAILABLE, "scripted", "ADD"):
            broken.run_pod(broken.pod_config())
        assert broken.pods() == []
    assert len(pending_deletes(parts)) == len(leases(parts)) == len(behaviours)
    parts.plugin()
    parts.daemon.reload()
    wait_until(lambda: not pending_deletes(parts))
    assert leases(parts) == []
    wait_until(lambda: not processes_running(str(parts.plugin_dir / "scripted")))


def test_pod_that_a_slow_plugin_made_late_is_the_answer_to_the_retry(
    parts: Parts, broken: Client
) -> None:
    parts.plugin(ADD={"delay": 0.5})
    config = broken.pod_config()
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
        broken.runtime.RunPodSandbox(api.RunPodSandboxRequest(config=config), timeout=0.2)
    pod = broken.run_pod(config)
    assert broken.run_pod(config) == pod
    assert [each.id for each in broken.pods()] == [pod]
    assert leases(parts) == [f"{pod}-eth0"]


def test_network_is_as_ready_as_its_plugins_say(parts: Parts, broken: Client) -> None:
    parts.plugin(STATUS={"do": "fail", "code": 50, "msg": "no addresses left"})
    parts.daemon.write_conflist(parts.conflist("scripted", version="1.1.0"))
    wait_until(lambda: "no addresses left" in network_ready(parts).message)
    condition = network_ready(parts)
    assert not condition.status
    assert "code 50" in condition.message
    assert broken.is_serving()
    parts.plugin()
    wait_until(lambda: network_ready(parts).status)


def test_without_a_network_configuration_pods_are_refused_until_there_is_one(
    parts: Parts, broken: Client, image: str
) -> None:
    conflist = parts.daemon.conf_dir / "10-net.conflist"
    conflist.unlink()
    wait_until(lambda: not network_ready(parts).status)
    condition = network_ready(parts)
    assert condition.reason
    assert str(parts.daemon.conf_dir) in condition.message
    with refused(grpc.StatusCode.UNAVAILABLE, "network", str(parts.daemon.conf_dir)):
        broken.run_pod(broken.pod_config())
    assert broken.pods() == []
    on_the_node = Pod.run(broken, image, broken.pod_config(host_network=True))
    assert broken.pod_status(on_the_node.id).status.state == api.SANDBOX_READY
    parts.daemon.write_conflist(parts.conflist("scripted"))
    wait_until(lambda: network_ready(parts).status)
    assert Pod.run(broken, image).ip


def test_network_configuration_that_turns_bad_is_reported_and_the_last_good_one_stays(
    parts: Parts, broken: Client, image: str
) -> None:
    (parts.daemon.conf_dir / "10-net.conflist").write_text("{ not json")
    condition = network_ready(parts)
    assert condition.status
    assert "10-net.conflist" in condition.message
    assert Pod.run(broken, image).ip


def test_network_configuration_that_was_never_good_is_reported_by_file(
    parts: Parts, broken: Client
) -> None:
    conflist = parts.daemon.conf_dir / "10-net.conflist"
    conflist.unlink()
    assert not network_ready(parts).status
    conflist.write_text("{ not json")
    assert "10-net.conflist" in network_ready(parts).message
    with refused(grpc.StatusCode.UNAVAILABLE, "10-net.conflist"):
        broken.run_pod(broken.pod_config())
    assert broken.pods() == []


def test_plugin_that_is_not_installed_is_named_with_where_it_was_looked_for(
    parts: Parts, broken: Client
) -> None:
    parts.daemon.write_conflist(parts.conflist("no-such-plugin"))
    wait_until(lambda: not network_ready(parts).status)
    with refused(grpc.StatusCode.UNAVAILABLE, "no-such-plugin", str(parts.plugin_dir)):
        broken.run_pod(broken.pod_config())
    assert broken.pods() == []


# --- the runtime -------------------------------------------------------------------------------------------------


def test_runtime_that_is_not_installed_is_named(parts: Parts, broken: Client) -> None:
    del parts
    with refused(grpc.StatusCode.INTERNAL, "no-such-runtime"):
        broken.run_pod(broken.pod_config(), handler="absent")
    assert broken.pods() == []


@pytest.mark.parametrize(
    "script",
    [
        "echo 'the runtime is out of order' >&2; exit 1",
        "runc \"$@\"; echo 'the runtime is out of order' >&2; exit 1",
    ],
    ids=["at once", "after its effect"],
)
def test_runtime_that_fails_is_quoted_and_nothing_stays(
    parts: Parts, broken: Client, image: str, script: str
) -> None:
    parts.runtime_at("run", script)
    with refused(grpc.StatusCode.INTERNAL, "creating container", "the runtime is out of order"):
        broken.run_pod(broken.pod_config())
    assert (broken.pods(), leases(parts)) == ([], [])
    parts.repair()
    pod = Pod.run(broken, image)
    parts.runtime_at("create", script)
    with refused(grpc.StatusCode.INTERNAL, "creating container", "the runtime is out of order"):
        pod.create(pod.container("true"))
    assert broken.containers() == []


def test_runtime_that_hangs_is_given_up_at_the_deadline(
    parts: Parts, broken: Client, image: str
) -> None:
    parts.runtime_at("run", f"exec sleep {SECONDS}")
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED, "creating container", f"{RUNTIME_S:g} s"):
        broken.run_pod(broken.pod_config())
    assert (broken.pods(), processes_running(SECONDS)) == ([], [])
    parts.repair()
    pod = Pod.run(broken, image)
    parts.runtime_at("create", f"exec sleep {SECONDS}")
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED, "creating container", f"{RUNTIME_S:g} s"):
        pod.create(pod.container("true"))
    assert (broken.containers(), processes_running(SECONDS)) == ([], [])


def test_runtime_that_says_nothing_is_an_error_too(
    parts: Parts, broken: Client, image: str
) -> None:
    parts.runtime_at("run", "exit 0")
    with refused(grpc.StatusCode.INTERNAL, "creating container", "left no pid"):
        broken.run_pod(broken.pod_config())
    assert broken.pods() == []
    parts.repair()
    pod = Pod.run(broken, image)
    parts.runtime_at("create", "exit 0")
    with refused(grpc.StatusCode.INTERNAL, "creating container"):
        pod.create(pod.container("true"))
    assert broken.containers() == []


def test_pause_container_that_ends_at_once_takes_its_pod_back(parts: Parts, broken: Client) -> None:
    kill_it = 'while [ "$1" != --pid-file ]; do shift; done; pid=$(cat "$2"); kill -KILL "$pid"'
    gone = 'while kill -0 "$pid" 2>/dev/null; do sleep 0.01; done'
    parts.runtime_at("run", f'runc "$@"; {kill_it}; {gone}; exit 0')
    with refused(grpc.StatusCode.INTERNAL, "creating container", "ended at once", "SIGKILL"):
        broken.run_pod(broken.pod_config())
    assert (broken.pods(), leases(parts)) == ([], [])


def test_pod_is_given_up_with_all_that_a_forking_runtime_has_started(
    parts: Parts, broken: Client
) -> None:
    # As crun does: what works on is in a session of its own, and no child of the command's.
    forks = f'setsid sh -c "sleep {SECONDS}; :" "$0" "$@" & sleep {SECONDS}'
    parts.runtime_at("run", forks)
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED, "creating container", f"{RUNTIME_S:g} s"):
        broken.run_pod(broken.pod_config())
    assert (broken.pods(), processes_running(SECONDS)) == ([], [])


def test_container_that_does_not_start_is_exited_with_start_error(
    parts: Parts, broken: Client, image: str
) -> None:
    pod = Pod.run(broken, image)
    container = pod.create(pod.container("sleep", SECONDS))
    parts.runtime_at("start", "echo 'will not start' >&2; exit 1")
    with refused(grpc.StatusCode.INTERNAL, "starting", container, "will not start"):
        broken.start(container)
    status = broken.status(container).status
    assert (status.state, status.reason) == (api.CONTAINER_EXITED, "StartError")
    assert status.exit_code == 128
    assert "will not start" in status.message
    wait_until(lambda: not cgroups_of(container))


def test_exec_that_the_runtime_refuses_or_never_answers_leaves_nothing(
    parts: Parts, broken: Client, image: str
) -> None:
    pod = Pod.run(broken, image)
    container = pod.sleeper()
    parts.runtime_at("exec", "echo 'no way in' >&2; exit 255")
    with refused(grpc.StatusCode.INTERNAL, container, "exec", "no way in"):
        broken.exec(container, "true")
    parts.runtime_at("exec", f"exec sleep {SECONDS}")
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED, container):
        broken.exec(container, "true", timeout_s=1)
    wait_until(lambda: not processes_running(SECONDS))
    parts.repair()
    assert broken.exec(container, "true").exit_code == 0


@pytest.mark.parametrize(
    "script", ["echo 'out of order' >&2; exit 1", f"exec sleep {SECONDS}"], ids=["fails", "hangs"]
)
def test_pod_goes_although_the_runtime_does_not_help(
    parts: Parts, broken: Client, image: str, script: str
) -> None:
    pod = Pod.run(broken, image)
    container = pod.sleeper()
    parts.runtime_at("delete", script)
    broken.remove_pod(pod.id)
    assert (broken.pods(), broken.containers()) == ([], [])
    assert cgroups_of(pod.id) == cgroups_of(container) == []


# --- the monitor -------------------------------------------------------------------------------------------------


def test_monitor_that_is_not_installed_is_named_with_the_remedy(
    parts: Parts, broken: Client, image: str
) -> None:
    pod = Pod.run(broken, image)
    parts.monitor.unlink()
    condition = node_condition(parts, "RuntimeReady")
    assert not condition.status
    assert str(parts.monitor) in condition.message
    with refused(grpc.StatusCode.INTERNAL, str(parts.monitor), "not found", "runtime.monitor"):
        pod.create(pod.container("true"))
    assert [each.id for each in broken.pods()] == [pod.id]
    assert broken.containers() == []


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ("echo 'cannot watch' >&2; exit 3", grpc.StatusCode.INTERNAL, ("status 3", "cannot watch")),
        (f"exec sleep {SECONDS}", grpc.StatusCode.DEADLINE_EXCEEDED, (f"{RUNTIME_S:g} s",)),
        (f'echo garbage >&"$_OCI_SYNCPIPE"; exec sleep {SECONDS}', grpc.StatusCode.INTERNAL, ()),
    ],
    ids=["fails", "hangs", "garbage"],
)
def test_monitor_that_does_not_do_its_part_is_ended_and_quoted(
    parts: Parts,
    broken: Client,
    image: str,
    script: str,
    code: grpc.StatusCode,
    words: tuple[str, ...],
) -> None:
    pod = Pod.run(broken, image)
    parts.replace_monitor(script)
    with refused(code, "creating container", *words):
        pod.create(pod.container("true"))
    assert (broken.containers(), processes_running(SECONDS)) == ([], [])


# --- what hangs --------------------------------------------------------------------------------------------------


def steps_of(info: str) -> list[str]:
    """The steps at which an object's operations stand, by its verbose status."""
    operations = json.loads(info)["operations"]
    return [step["step"] for operation in operations for step in operation["steps"]]


def test_what_hangs_is_shown_with_its_step_and_holds_nobody_up(
    parts: Parts, broken: Client, image: str
) -> None:
    pod = Pod.run(broken, image)
    container, other = pod.create(pod.container("sleep", SECONDS)), pod.sleeper()

    def container_steps() -> list[str]:
        return steps_of(broken.status(container, verbose=True).info["info"])

    with ThreadPoolExecutor() as calls:
        # The runtime hangs, then hangs again when it is asked what became of that.
        parts.runtime_at("start", f"exec sleep {SECONDS}")
        parts.runtime_at("state", f"exec sleep {SECONDS}")
        starting = calls.submit(broken.start, container)
        wait_until(lambda: container_steps() == ["runc start"])
        for look in (broken.pods, broken.containers, partial(broken.status, other)):
            look()
            assert not starting.done(), f"{look} was answered only when nothing hung any more"
        shown = json.loads(parts.daemon.cli("status", "--json").stdout)
        [shown_pod] = shown["pods"]
        [waiting, idle] = shown_pod["containers"]
        assert (waiting["id"], waiting["state"], idle["state"]) == (container, "created", "running")
        assert [each["operation"] for each in waiting["operations"]] == ["StartContainer"]
        assert idle["memoryBytes"] > 0
        wait_until(lambda: container_steps() == ["runc state"])
        with refused(grpc.StatusCode.DEADLINE_EXCEEDED, "starting container", container):
            starting.result()
        assert broken.status(container).status.reason == "StartError"
        parts.repair()
        # A pause process that hangs, and a plugin that does: the pod goes all the same.
        pod_info = json.loads(broken.pod_status(pod.id, verbose=True).info["info"])
        os.kill(pod_info["pid"], signal.SIGSTOP)
        parts.plugin(DEL={"do": "hang", "helper": True, "after_effect": False})
        stopping = calls.submit(broken.remove_pod, pod.id)
        wait_until(
            lambda: (
                "cni DEL scripted" in steps_of(broken.pod_status(pod.id, verbose=True).info["info"])
            )
        )
        stopping.result()
    assert (broken.pods(), broken.containers(), cgroups_of(pod.id)) == ([], [], [])
    wait_until(lambda: not processes_running(SECONDS))
    parts.plugin()
    parts.daemon.reload()
    wait_until(lambda: not pending_deletes(parts))


def test_daemon_still_serves_after_all_of_this(parts: Parts, broken: Client, image: str) -> None:
    del parts
    pod = Pod.run(broken, image)
    assert pod.says("hostname") == f"{pod.config.hostname}\n"
