"""A leak of each kind is planted on the real node; the guard names it, and nothing that was there before.

The "daemon" here is a process that does what a test tells it: the guard asks nothing of a daemon but its pid.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness import leaks
from tests.harness.daemon import CHECKOUT, Daemons
from tests.harness.procs import read_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.integration

SOME_ID = "5eed" * 16
SERVANT = "import sys\nfor line in sys.stdin: exec(line); print('done', flush=True)\n"


@pytest.fixture
def token(daemons: Daemons) -> str:
    return daemons.scope().token


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Stands for a daemon's root and state directories."""
    return tmp_path


class Servant:
    """A child process that executes the lines it is sent: stands for a daemon."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVANT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def do(self, line: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def servant() -> Iterator[Servant]:
    servant = Servant()
    servant.do("import os, subprocess, threading")
    yield servant
    servant.end()


@pytest.fixture
def scope(daemons: Daemons, tree: Path, servant: Servant) -> leaks.Scope:
    return replace(
        daemons.scope(), trees=lambda: [tree], daemons=lambda: {"planted": servant.process.pid}
    )


@contextmanager
def caught(scope: leaks.Scope) -> Iterator[list[leaks.Leak]]:
    """Run the block under the guard and collect what it reports, without waiting for it to go away."""
    before = leaks.Snapshot.take(scope)
    found: list[leaks.Leak] = []
    yield found
    found += leaks.leaks_since(before, scope, settle_s=0)


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


def test_a_block_that_leaves_nothing_behind_passes(scope: leaks.Scope) -> None:
    with leaks.no_leaks(scope):
        run("true")


def test_leaked_network_namespace_is_named(scope: leaks.Scope) -> None:
    with caught(scope) as found:
        run("ip", "netns", "add", "cri-planted")
    try:
        assert leaks.Leak("network namespace", "cri-planted") in found
        assert leaks.Leak("mount", "/run/netns/cri-planted (nsfs)") in found
    finally:
        run("ip", "netns", "delete", "cri-planted")


def test_leaked_mount_is_named(scope: leaks.Scope, tree: Path) -> None:
    with caught(scope) as found:
        run("mount", "-t", "tmpfs", "none", str(tree))
    run("umount", str(tree))
    assert found == [leaks.Leak("mount", f"{tree} (tmpfs)")]


def test_second_mount_on_the_same_place_is_a_leak_too(scope: leaks.Scope, tree: Path) -> None:
    run("mount", "-t", "tmpfs", "none", str(tree))
    try:
        with caught(scope) as found:
            run("mount", "-t", "tmpfs", "none", str(tree))
        run("umount", str(tree))
        assert found == [leaks.Leak("mount", f"{tree} (tmpfs)")]
    finally:
        run("umount", str(tree))


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (("veth", "peer", "name", "vethplant2"), {"vethplant1", "vethplant2"}),
        (("bridge",), {"vethplant1"}),
    ],
)
def test_leaked_link_is_named(scope: leaks.Scope, kind: tuple[str, ...], names: set[str]) -> None:
    with caught(scope) as found:
        run("ip", "link", "add", "vethplant1", "type", *kind)
    run("ip", "link", "delete", "vethplant1")
    assert {leak.name for leak in found} == names
    assert {leak.kind for leak in found} == {"link"}


def test_leaked_nft_rule_is_named_with_its_chain(scope: leaks.Scope) -> None:
    run(
        "nft", "add table ip planted; add chain ip planted c { type filter hook input priority 0; }"
    )
    try:
        with caught(scope) as found:
            run("nft", "add rule ip planted c tcp dport 8080 drop")
        [leak] = found
        assert leak.kind == "packet rule"
        assert leak.name.startswith("rule ip planted c:")
        assert "8080" in leak.name
    finally:
        run("nft", "delete table ip planted")


@pytest.mark.parametrize("command", ["iptables", "ip6tables", "iptables-legacy"])
def test_leaked_iptables_chain_and_rule_are_named(scope: leaks.Scope, command: str) -> None:
    with caught(scope) as found:
        run(command, "-t", "nat", "-N", "CNI-DN-planted")
        run(command, "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "-j", "CNI-DN-planted")
    run(command, "-t", "nat", "-F")
    run(command, "-t", "nat", "-X")
    assert [leak.name.split()[0] for leak in found] == ["chain", "rule"]
    assert all("CNI-DN-planted" in leak.name and leak.kind == "packet rule" for leak in found)


def test_chains_that_plugins_keep_once_per_node_are_no_leak(scope: leaks.Scope) -> None:
    with leaks.no_leaks(scope, settle_s=0):
        run("iptables", "-t", "nat", "-N", "CNI-HOSTPORT-MASQ")
        run("iptables", "-t", "nat", "-A", "POSTROUTING", "-j", "CNI-HOSTPORT-MASQ")
        run("iptables", "-t", "nat", "-A", "CNI-HOSTPORT-MASQ", "-j", "MASQUERADE")
    run("iptables", "-t", "nat", "-F")
    run("iptables", "-t", "nat", "-X")


def test_leaked_lease_is_named_and_host_locals_own_notes_are_not(
    scope: leaks.Scope, tree: Path
) -> None:
    network = tree / "leases" / "some-net"
    network.mkdir(parents=True)
    with caught(scope) as found:
        for name in ("10.64.0.2", "last_reserved_ip.0", "lock"):
            (network / name).touch()
    assert found == [leaks.Leak("lease", f"{network}/10.64.0.2")]


def test_leaked_lease_in_the_nodes_usual_place_is_named(scope: leaks.Scope) -> None:
    network = leaks.CNI_DIR / "networks" / "planted"
    network.mkdir(parents=True)
    try:
        with caught(scope) as found:
            (network / "10.64.0.3").touch()
        assert found == [leaks.Leak("lease", f"{network}/10.64.0.3")]
    finally:
        (network / "10.64.0.3").unlink()


def test_leaked_cni_result_is_named(scope: leaks.Scope) -> None:
    results = leaks.CNI_DIR / "results"
    results.mkdir(exist_ok=True)
    planted = results / f"net-{SOME_ID}-eth0"
    try:
        with caught(scope) as found:
            planted.write_text("{}")
        assert found == [leaks.Leak("CNI result", str(planted))]
    finally:
        planted.unlink()


def test_leaked_cgroup_is_named_in_every_hierarchy_that_has_it(
    scope: leaks.Scope, token: str
) -> None:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    tops = [
        Path(line.split()[4]) for line in lines if line.partition(" - ")[2].startswith("cgroup")
    ]
    parents = [top / f"{token}-planted" for top in tops]
    with caught(scope) as found:
        for parent in parents:
            (parent / "deep").mkdir(parents=True)
    for parent in parents:
        (parent / "deep").rmdir()
        parent.rmdir()
    assert tops
    expected = [leaks.Leak("cgroup", str(path)) for p in parents for path in (p, p / "deep")]
    assert sorted(found) == sorted(expected)


def test_leaked_child_process_is_named_by_its_command_line(scope: leaks.Scope) -> None:
    with caught(scope) as found:
        child = subprocess.Popen(["sleep", "61.5"])
    child.kill()
    child.wait()
    [leak] = found
    assert leak.kind == "process"
    assert leak.name.startswith("sleep 61.5 ")


def test_leaked_process_that_cut_all_ties_is_found_by_its_namespaces(scope: leaks.Scope) -> None:
    with caught(scope) as found:
        shell = subprocess.run(
            ["sh", "-c", "setsid sleep 62.5 >/dev/null 2>&1 & echo $!"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    os.kill(int(shell.stdout), signal.SIGKILL)
    [leak] = found
    assert "sleep 62.5 " in leak.name  # perhaps still as setsid, which becomes it


def test_leaked_process_in_foreign_namespaces_is_found_by_the_token(
    scope: leaks.Scope, token: str
) -> None:
    with caught(scope) as found:
        shell = subprocess.run(
            ["unshare", "--mount", "--net", "bash", "-c",
             f"(exec -a {token}-monitor sleep 63.5) >/dev/null 2>&1 & echo $!"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        _wait_for(lambda: token in str(read_process(int(shell.stdout))))
    os.kill(int(shell.stdout), signal.SIGKILL)
    assert [leak.kind for leak in found] == ["process"]


def test_zombie_of_the_test_process_is_named(scope: leaks.Scope) -> None:
    with caught(scope) as found:
        child = subprocess.Popen(["true"])
        _wait_for(lambda: (process := read_process(child.pid)) is not None and process.zombie)
    child.wait()
    [leak] = found
    assert leak.kind == "zombie"
    assert leak.name.startswith("[true] ")


def test_zombie_of_a_daemon_is_named(scope: leaks.Scope, servant: Servant) -> None:
    with caught(scope) as found:
        servant.do(
            "child = subprocess.Popen(['true']); os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)"
        )
    assert [leak.kind for leak in found] == ["zombie"]


def test_zombie_that_process_1_has_yet_to_collect_is_no_leak(
    scope: leaks.Scope, token: str
) -> None:
    with leaks.no_leaks(scope, settle_s=0):
        orphan = subprocess.run(
            ["bash", "-c", f"(exec -a {token}-orphan sleep 64.5) >/dev/null 2>&1 & echo $!"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        _wait_for(lambda: (p := read_process(int(orphan.stdout))) is not None and p.parent == 1)
        os.kill(int(orphan.stdout), signal.SIGKILL)
        _wait_for(lambda: (p := read_process(int(orphan.stdout))) is None or p.zombie)


def test_leaked_descriptors_of_a_daemon_are_counted_by_what_they_are(
    scope: leaks.Scope, servant: Servant, tree: Path
) -> None:
    (tree / "log").touch()
    with caught(scope) as found:
        servant.do(f"kept = [open('{tree}/log') for _ in range(3)], os.pipe()")
    kind = "descriptor of daemon planted"
    assert found == [
        leaks.Leak(kind, f"{tree}/log (3 more than before)"),
        leaks.Leak(kind, "pipe (2 more than before)"),
    ]


def test_leaked_descriptor_of_the_test_process_is_named(scope: leaks.Scope) -> None:
    with caught(scope) as found:
        kept = socket.socket()
    kept.close()
    assert found == [leaks.Leak("descriptor of the test process", "socket")]


def test_leaked_file_and_empty_directory_of_an_object_are_named(
    scope: leaks.Scope, tree: Path
) -> None:
    with caught(scope) as found:
        (tree / "containers" / SOME_ID).mkdir(parents=True)
        (tree / "exits").mkdir()
        (tree / "exits" / SOME_ID).write_text("0")
        (tree / "layers" / "a1" / "usr").mkdir(parents=True)
    assert found == [
        leaks.Leak("file", f"{tree}/containers/{SOME_ID}"),
        leaks.Leak("file", f"{tree}/exits/{SOME_ID}"),
        leaks.Leak("file", f"{tree}/layers/a1"),
    ]


@pytest.mark.parametrize("directory", ["/tmp", "/run", "/run/runc"])
def test_leaked_temporary_file_is_named(scope: leaks.Scope, token: str, directory: str) -> None:
    Path(directory).mkdir(exist_ok=True)
    planted = Path(directory, f"conmon-{token}")
    with caught(scope) as found:
        planted.touch()
    planted.unlink()
    assert found == [leaks.Leak("temporary file", str(planted))]


def test_what_ends_within_the_settling_time_is_no_leak(scope: leaks.Scope) -> None:
    with leaks.no_leaks(scope, settle_s=2):
        subprocess.run(["sh", "-c", "sleep 0.3 >/dev/null 2>&1 &"], check=True)


def test_what_stays_past_the_settling_time_is_a_leak(scope: leaks.Scope) -> None:
    guard = leaks.no_leaks(scope, settle_s=0.2)
    guard.__enter__()
    run("ip", "link", "add", "vethplant1", "type", "bridge")
    try:
        with pytest.raises(leaks.LeakError, match="link: vethplant1"):
            guard.__exit__(None, None, None)
    finally:
        run("ip", "link", "delete", "vethplant1")


def test_a_snapshot_takes_less_than_60_ms_and_half_a_ms_for_each_process_of_the_machine(
    scope: leaks.Scope,
) -> None:
    seconds = []
    for _ in range(5):
        started = time.process_time()
        leaks.Snapshot.take(scope)
        seconds.append(time.process_time() - started)
    processes = sum(name.isdigit() for name in os.listdir("/proc"))
    assert min(seconds) < 0.06 + processes * 0.0005, seconds


def test_strangers_files_are_no_leaks(scope: leaks.Scope) -> None:
    theirs = [Path("/tmp", f"{name}-{os.getpid()}.stranger") for name in ("runc", "crun", "conmon")]
    try:
        with caught(scope) as found:
            for path in theirs:
                path.touch()
        assert found == []
    finally:
        for path in theirs:
            path.unlink()


def test_the_test_that_leaks_is_the_one_that_fails(tmp_path: Path) -> None:
    leaky = tmp_path / "test_leaky.py"
    leaky.write_text(
        "import subprocess\n"
        "def test_good(leak_guard): pass\n"
        "def test_leaky(leak_guard): subprocess.run(['ip', 'link', 'add', 'vethplant1', 'type', 'bridge'])\n"
        "def test_after(leak_guard): pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.integration.conftest", "-o", "addopts=", "-c", os.devnull,
         "--rootdir", str(tmp_path), "-p", "no:cacheprovider", "-rA", str(leaky)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "ERROR test_leaky.py::test_leaky" in said
    assert "link: vethplant1" in said
    assert "3 passed, 1 error" in said


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
