"""Real runc takes what the spec builders make, and the processes it starts are confined as promised.

With CRI_SHIM_TEST_RUNTIME=PATH it is that runtime.
"""

import ctypes
import json
import os
import shutil
import socket
import subprocess
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cri_shim._pb.cri.v1 import api_pb2
from cri_shim._pb.cri.v1.api_pb2 import (
    Capability,
    KeyValue,
    LinuxContainerResources,
    LinuxContainerSecurityContext,
    Mount,
    SecurityProfile,
)
from cri_shim.config.values import CAPABILITIES
from cri_shim.host.cgroups.tree import Cgroups
from cri_shim.oci.spec.container import encode_spec
from cri_shim.oci.spec.inputs import NodeFacts, ResolvedUser
from cri_shim.oci.spec.process import build_exec_process
from cri_shim.oci.spec.seccomp_table import ALWAYS, ON_ARCHITECTURE, PAUSE_ALWAYS, WITH_CAPABILITY
from tests.harness.slowness import SLOWNESS
from tests.unit.oci.spec.cases import (
    CASES,
    DEFAULT_CAPABILITIES,
    NEEDS_CGROUP_V2,
    NEEDS_USER_NAMESPACES,
    Place,
    container_config,
    container_spec,
    sandbox_facts,
)

pytestmark = pytest.mark.integration

RUNTIME_DEFAULT = SecurityProfile(profile_type=SecurityProfile.RuntimeDefault)
RUNTIME = os.environ.get("CRI_SHIM_TEST_RUNTIME", "runc")


def this_node() -> NodeFacts:
    """What this machine and this process can give, so that no test asks for more."""
    status = dict(
        line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines()
    )
    held = int(status["CapBnd"], 16) & int(status["CapPrm"], 16)
    capabilities = tuple(name for bit, name in enumerate(CAPABILITIES) if held >> bit & 1)
    own_score = int(Path("/proc/self/oom_score_adj").read_text())
    major, minor = os.uname().release.split(".")[:2]
    return NodeFacts(
        arch=os.uname().machine,
        kernel=(int(major), int(minor)),
        cgroup_v2=Path("/sys/fs/cgroup/cgroup.controllers").exists(),
        cgroup_namespace=Path("/sys/fs/cgroup/cgroup.controllers").exists(),
        capabilities=capabilities,
        default_capabilities=DEFAULT_CAPABILITIES,
        min_oom_score_adj=None if "SYS_RESOURCE" in capabilities else own_score,
    )


def wait_until(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 10 * SLOWNESS
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


@dataclass
class Runc:
    """The real runtime with a root of its own."""

    root: Path
    pid_file: Path
    consoles: ExitStack

    def call(self, *argv: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [RUNTIME, "--root", str(self.root), *argv],
            check=False,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=30 * SLOWNESS,
            **options,
        )

    def write(self, spec: dict[str, Any]) -> Path:
        bundle = self.root.parent / f"bundle-{uuid.uuid4().hex}"
        bundle.mkdir()
        (bundle / "config.json").write_bytes(encode_spec(spec))
        return bundle

    def create(self, name: str, spec: dict[str, Any]) -> None:
        """Create and leave it created, with null devices or a console nobody looks at."""
        bundle = self.write(spec)
        options = ["--bundle", str(bundle), "--pid-file", str(self.pid_file)]
        if spec["process"]["terminal"]:
            options += ["--console-socket", self._console()]
        log = bundle / "log"
        result = subprocess.run(
            [RUNTIME, "--root", self.root, "--log", log, "create", *options, name],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=30,
        )
        assert result.returncode == 0, log.read_text()

    def run(self, name: str, spec: dict[str, Any]) -> str:
        """Run to the end and answer what the process said."""
        try:
            result = self.call("run", "--bundle", str(self.write(spec)), name)
        finally:
            self.delete(name)
        assert result.returncode == 0, result.stderr + result.stdout
        return result.stdout

    def _console(self) -> str:
        """A socket that takes the terminal's other end and keeps it, else the container would hang up."""
        path = f"/run/spec-test-{uuid.uuid4().hex[:8]}.sock"
        console = socket.socket(socket.AF_UNIX)
        console.bind(path)
        console.listen()
        self.consoles.callback(Path(path).unlink)
        self.consoles.enter_context(console)
        return path

    def delete(self, name: str) -> None:
        self.call("delete", "--force", name)
        self.consoles.close()


@pytest.fixture(scope="module")
def runc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runc]:
    directory = tmp_path_factory.mktemp("runc")
    with ExitStack() as consoles:
        yield Runc(directory / "root", directory / "pid", consoles)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, runc: Runc) -> Iterator[Place]:
    """A pod whose pause container really runs, made from the builder's own spec."""
    tmp_path = tmp_path_factory.mktemp("pod")
    rootfs = tmp_path / "rootfs"
    for directory in ("bin", "tmp", "etc"):
        (rootfs / directory).mkdir(parents=True)
    shutil.copy("/bin/busybox", rootfs / "bin/busybox")
    shutil.copy("/usr/bin/catatonit", rootfs / "pause")
    for applet in ("sh", "cat", "id", "env", "grep", "sleep"):
        (rootfs / "bin" / applet).symlink_to("busybox")
    for directory in ("shm", "volume", "pod-etc"):
        (tmp_path / directory).mkdir()
    for name in ("hostname", "hosts", "resolv.conf"):
        (tmp_path / "pod-etc" / name).write_text(f"the pod's {name}\n")
    netns = f"cri-test-{uuid.uuid4().hex[:8]}"
    cgroup = f"/cri-shim-spec-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", netns], check=True, timeout=30)
    place = Place(
        node=this_node(),
        rootfs=str(rootfs),
        cgroups_path=cgroup,
        netns=f"/run/netns/{netns}",
        shm=str(tmp_path / "shm"),
        etc=str(tmp_path / "pod-etc"),
        volume=str(tmp_path / "volume"),
    )
    try:
        spec = CASES["sandbox_privileged"](replace(place, cgroups_path=f"{cgroup}-pause"))
        runc.create("pause", spec)
        assert runc.call("start", "pause").returncode == 0
        pid = int(runc.pid_file.read_text())
        yield replace(place, pause_pid=pid, target_pid=pid)
    finally:
        runc.delete("pause")
        subprocess.run(["ip", "netns", "delete", netns], check=True, timeout=30)


Run = Callable[..., str]


@pytest.fixture
def run(place: Place, runc: Runc) -> Run:
    """Run one command in a container of the pod and answer what it said."""

    def run_container(*args: str, **fields: Any) -> str:
        changes = {key: fields.pop(key) for key in ("user", "node", "sandbox") & fields.keys()}
        spec = container_spec(container_config(command=args, **fields), place, **changes)
        return runc.run("app", spec)

    return run_container


@pytest.mark.parametrize("case", sorted(CASES.keys() - NEEDS_USER_NAMESPACES))
def test_runc_creates_and_starts_each_golden_spec(case: str, place: Place, runc: Runc) -> None:
    if case in NEEDS_CGROUP_V2 and not place.node.cgroup_v2:
        spec = CASES[case](place)
        assert spec["linux"]["resources"].pop("unified"), "what this node's cgroups can't take"
        del spec["linux"]["resources"]["memory"]["swap"]
        spec["linux"]["namespaces"].remove({"type": "cgroup"})
    else:
        spec = CASES[case](place)
    try:
        runc.create("app", spec)
        assert json.loads(runc.call("state", "app").stdout)["status"] == "created"
        started = runc.call("start", "app")
        assert started.returncode == 0, started.stderr
        assert json.loads(runc.call("state", "app").stdout)["status"] == "running"
    finally:
        runc.delete("app")


def test_pause_container_joins_the_pinned_network_and_bears_the_pod_name(
    place: Place, run: Run
) -> None:
    assert os.readlink(f"/proc/{place.pause_pid}/ns/net") != os.readlink("/proc/self/ns/net")
    assert run("/bin/busybox", "hostname") == "web\n"
    assert run("/bin/cat", "/proc/sys/kernel/shm_rmid_forced") == "1\n"
    assert " /sys sysfs ro" in run("/bin/cat", "/proc/mounts"), "in a privileged pod as well"
    assert run("/bin/cat", "/etc/hosts") == "the pod's hosts\n"


def test_inheritable_and_ambient_capabilities_are_empty(run: Run) -> None:
    said = run("/bin/grep", "Cap", "/proc/self/status")
    sets = dict(line.split(":\t") for line in said.splitlines())
    assert int(sets["CapInh"], 16) == 0
    assert int(sets["CapAmb"], 16) == 0
    assert int(sets["CapBnd"], 16) == 0xA80425FB & ~(1 << 29), (
        "the default set, without AUDIT_WRITE"
    )


def test_ambient_capability_reaches_an_unprivileged_user(run: Run) -> None:
    context = LinuxContainerSecurityContext(
        capabilities=Capability(
            drop_capabilities=["ALL"], add_ambient_capabilities=["NET_BIND_SERVICE"]
        )
    )
    user = ResolvedUser(uid=1000, gid=1000, additional_gids=(1000,))
    said = run("/bin/grep", "CapEff", "/proc/self/status", context=context, user=user)
    assert int(said.split()[1], 16) == 1 << 10


def test_pause_container_has_no_capabilities_and_a_seccomp_filter(place: Place) -> None:
    status = Path(f"/proc/{place.pause_pid}/status").read_text()
    assert "CapBnd:\t0000000000000000\n" in status
    assert "NoNewPrivs:\t1\n" in status
    assert "Seccomp:\t2\n" in status


def test_pause_program_reaps_orphans_and_ends_on_sigterm_under_its_filter(
    place: Place, run: Run, runc: Runc
) -> None:
    run("/bin/sh", "-c", "(sleep 0.1 &)")
    children = Path(f"/proc/{place.pause_pid}/task/{place.pause_pid}/children")
    wait_until(lambda: children.read_text() == "", "the pause program left a zombie")
    runc.create("other", CASES["sandbox_ordinary"](place))
    try:
        assert runc.call("start", "other").returncode == 0

        def ends_on_sigterm() -> bool:
            # The first process of a namespace gets none that it does not handle yet: early ones are lost.
            runc.call("kill", "other", "TERM")
            status: str = json.loads(runc.call("state", "other").stdout)["status"]
            return status == "stopped"

        wait_until(ends_on_sigterm, "the pause program ignored SIGTERM")
    finally:
        runc.delete("other")


def test_user_groups_and_umask_are_what_was_resolved(run: Run, place: Place) -> None:
    user = ResolvedUser(uid=1000, gid=1001, additional_gids=(1001, 29))
    node = replace(place.node, umask=0o027)
    said = run("/bin/sh", "-c", "id -u; id -G; umask", user=user, node=node)
    assert said.splitlines() == ["1000", "1001 29", "0027"]


def test_masked_paths_are_empty_and_proc_sys_is_read_only(run: Run) -> None:
    script = (
        "cat /proc/kcore /proc/keys /proc/timer_list; busybox ls /sys/firmware; "
        "busybox touch /proc/sys/kernel/hostname 2>/dev/null; echo x >/proc/sys/kernel/hostname"
    )
    said = run("/bin/sh", "-c", f"({script}) 2>&1; true")
    assert "nonexistent directory" in said or "Read-only file system" in said
    assert "ELF" not in said
    assert len(said.splitlines()) <= 2


def test_environment_bytes_outside_utf8_become_the_replacement_character(run: Run) -> None:
    said = run("/bin/env", envs=[KeyValue(key="RAW", value=b"a\xff\xfeb")])
    assert "RAW=a\ufffd\ufffdb" in said.splitlines()


def test_read_only_root_still_has_a_writable_shm(run: Run) -> None:
    context = LinuxContainerSecurityContext(readonly_rootfs=True)
    said = run(
        "/bin/sh",
        "-c",
        "echo x >/dev/shm/x && echo shm; echo x >/x || echo x >/etc/hosts || echo ro",
        context=context,
    )
    assert said.split() == ["shm", "ro"]


def test_mount_options_take_effect(run: Run, place: Place) -> None:
    mounts = [
        Mount(container_path="/a", host_path=place.volume, mount_options=["noexec", "nosuid"]),
        Mount(container_path="/b", host_path=place.volume, readonly=True),
        Mount(container_path="/c", host_path=place.volume, readonly=True, recursive_read_only=True),
    ]
    said = run("/bin/cat", "/proc/mounts", mounts=mounts)
    options = {line.split()[1]: line.split()[3].split(",") for line in said.splitlines()}
    assert {"rw", "noexec", "nosuid"} <= set(options["/a"])
    assert options["/b"][0] == "ro"
    assert options["/c"][0] == "ro"


def test_memory_limit_is_found_in_the_containers_cgroup(place: Place, runc: Runc) -> None:
    limits = LinuxContainerResources(memory_limit_in_bytes=48 << 20)
    runc.create("app", container_spec(container_config(resources=limits), place))
    try:
        found = Cgroups.detect().read_stats(place.cgroups_path.lstrip("/"))
        assert found.memory_limit_bytes == 48 << 20
    finally:
        runc.delete("app")


def test_exec_has_the_containers_rights_and_its_own_arguments(
    place: Place, runc: Runc, tmp_path: Path
) -> None:
    context = LinuxContainerSecurityContext(seccomp=RUNTIME_DEFAULT, no_new_privs=True)
    spec = container_spec(container_config(context=context), place)
    process = build_exec_process(
        spec["process"], ["/bin/grep", "-E", "Seccomp:|NoNewPrivs", "/proc/self/status"], tty=False
    )
    (tmp_path / "process.json").write_bytes(encode_spec(process))
    runc.create("app", spec)
    try:
        assert runc.call("start", "app").returncode == 0
        result = runc.call("exec", "--process", str(tmp_path / "process.json"), "app")
        assert result.stdout.split() == ["NoNewPrivs:", "1", "Seccomp:", "2"], result.stderr
    finally:
        runc.delete("app")


PROBE = textwrap.dedent(
    """
    import ctypes, errno, os, socket, subprocess, threading, multiprocessing, tempfile, json
    libc = ctypes.CDLL(None, use_errno=True)
    def call(*args):
        got = libc.syscall(*[ctypes.c_long(a) for a in args])
        return "ok" if got >= 0 else errno.errorcode[ctypes.get_errno()]
    CLONE3, SOCKET, UNSHARE, KEYCTL, IO_URING, BPF, MOUNT, PTRACE = 435, 41, 272, 250, 425, 321, 165, 101
    answers = {
        "clone3": call(CLONE3, 0, 0),
        "inet": call(SOCKET, socket.AF_INET, socket.SOCK_STREAM, 0),
        "netlink": call(SOCKET, socket.AF_NETLINK, socket.SOCK_RAW, 0),
        "alg": call(SOCKET, 38, socket.SOCK_SEQPACKET, 0),
        "vsock": call(SOCKET, 40, socket.SOCK_STREAM, 0),
        "alg with a high bit": call(SOCKET, 38 | 1 << 32, socket.SOCK_SEQPACKET, 0),
        "new user namespace": call(UNSHARE, 0x10000000),
        "keyring": call(KEYCTL, 0, -3, 1),
        "io_uring": call(IO_URING, 1, 0),
        "bpf": call(BPF, 0, 0, 0),
        "mount": call(MOUNT, 0, 0, 0, 0, 0),
        "tracing": call(PTRACE, 16, 0x3FFFFF, 0, 0),
    }
    thread = threading.Thread(target=lambda: answers.update(thread="ran"))
    thread.start(); thread.join()
    answers["child"] = subprocess.check_output(["/bin/sh", "-c", "echo $((6*7)) | cat"], text=True).strip()
    answers["pool"] = multiprocessing.Pool(2).map(abs, [-1, -2])
    with tempfile.TemporaryDirectory() as d:
        os.symlink("x", d + "/l"); os.chmod(d, 0o700); open(d + "/f", "w").write("x")
    print(json.dumps(answers))
    """
)


def test_debian_sh_and_python_work_under_the_default_seccomp_profile(
    place: Place, runc: Runc, tmp_path: Path
) -> None:
    rootfs = tmp_path / "rootfs"
    for name in ("usr", "tmp"):
        (rootfs / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64"):
        (rootfs / name).symlink_to(f"usr/{name}")
    config = container_config(
        command=["/usr/bin/python3", "-c", PROBE],
        context=LinuxContainerSecurityContext(seccomp=RUNTIME_DEFAULT),
        mounts=[Mount(container_path="/usr", host_path="/usr", readonly=True)],
    )
    spec = container_spec(config, replace(place, rootfs=str(rootfs)))
    assert json.loads(runc.run("app", spec)) == {
        "clone3": "ENOSYS",
        "inet": "ok",
        "netlink": "ok",
        "alg": "EPERM",
        "vsock": "EPERM",
        "alg with a high bit": "EPERM",
        "new user namespace": "EPERM",
        "keyring": "EPERM",
        "io_uring": "EPERM",
        "bpf": "EPERM",
        "mount": "EPERM",
        "tracing": "ESRCH",
        "thread": "ran",
        "child": "42",
        "pool": [1, 2],
    }


def test_each_name_in_the_tables_is_a_system_call() -> None:
    """A misspelt name would be skipped without a word; newer ones than this library's are listed here."""
    newer = {
        *("cachestat", "fchmodat2", "futex_requeue", "futex_wait", "futex_wake", "getxattrat"),
        *("listmount", "listxattrat", "map_shadow_stack", "mseal", "open_tree_attr"),
        *("removexattrat", "riscv_hwprobe", "setxattrat", "statmount", "uretprobe"),
        *("file_getattr", "file_setattr", "lsm_get_self_attr", "lsm_list_modules"),
        *("lsm_set_self_attr", "uprobe"),
    }
    library = ctypes.CDLL("libseccomp.so.2")
    tables = [*ALWAYS.values(), *WITH_CAPABILITY.values(), *ON_ARCHITECTURE.values(), PAUSE_ALWAYS]
    unknown = {
        name
        for name in " ".join(tables).split()
        if library.seccomp_syscall_resolve_name(name.encode()) == -1
    }
    assert unknown <= newer


def test_sys_admin_opens_mounting_and_namespaces(run: Run) -> None:
    context = LinuxContainerSecurityContext(
        seccomp=RUNTIME_DEFAULT, capabilities=Capability(add_capabilities=["SYS_ADMIN"])
    )
    said = run(
        "/bin/sh",
        "-c",
        "busybox unshare -m busybox mount -t tmpfs none /tmp && echo mounted",
        context=context,
    )
    assert said == "mounted\n"


def test_privileged_container_has_every_capability_and_no_filter(run: Run, place: Place) -> None:
    context = LinuxContainerSecurityContext(privileged=True, seccomp=RUNTIME_DEFAULT)
    said = run(
        "/bin/sh",
        "-c",
        "grep -E 'CapEff|Seccomp:' /proc/self/status; grep -c ' /sys sysfs rw' /proc/mounts",
        context=context,
        sandbox=sandbox_facts(place, privileged=True),
    )
    own = Path("/proc/self/status").read_text()
    held = next(line.split()[1] for line in own.splitlines() if line.startswith("CapBnd"))
    assert said.split() == ["CapEff:", held, "Seccomp:", "0", "1"]


def test_bidirectional_mount_shows_the_containers_mount_on_the_node(
    place: Place, runc: Runc
) -> None:
    volume = place.volume
    subprocess.run(["mount", "--bind", volume, volume], check=True, timeout=10)
    subprocess.run(["mount", "--make-rshared", volume], check=True, timeout=10)
    try:
        (Path(volume) / "inner").mkdir()
        config = container_config(
            command=["/bin/sh", "-c", "busybox mount -t tmpfs none /v/inner && exec sleep 60"],
            context=LinuxContainerSecurityContext(
                capabilities=Capability(add_capabilities=["SYS_ADMIN"])
            ),
            mounts=[
                Mount(
                    container_path="/v",
                    host_path=volume,
                    propagation=api_pb2.PROPAGATION_BIDIRECTIONAL,
                )
            ],
        )
        runc.create("app", container_spec(config, place))
        assert runc.call("start", "app").returncode == 0
        wait_until(lambda: os.path.ismount(f"{volume}/inner"), "the mount never arrived")
    finally:
        runc.delete("app")
        subprocess.run(["umount", "-R", volume], check=True, timeout=10)
