"""Requests nobody thought of: what is right is started, what is wrong is refused, and nothing is ever our mistake.

A few are made in every run; many with `-m slow`. A failure shows the request that hypothesis boiled it down to.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import text_format
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.integration.scene import Pod
from tests.unit.oci.spec.test_arbitrary import few, messages, names_a_field_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from google.protobuf.message import Message

    from tests.harness.client import Client

pytestmark = pytest.mark.integration

FEW_OR_MANY = [
    pytest.param(12, id="few"),
    pytest.param(500, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
]
ACCEPTED_AT_LEAST = 0.95
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}

# --- requests that are right -------------------------------------------------------------------------------------

WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
NAMES = st.text("ABCXYZabcxyz_0123456789", min_size=1, max_size=8).map("V_".__add__)
IDS = st.one_of(st.integers(0, 70_000), st.sampled_from([0, 1000, 2**31 - 1]))
PLACES = ("/data", "/new/place", "/etc/hosts", "/dev/shm", "/srv/a/b/", "/mnt/../opt", "/tmp")
LIMITS = ("cgroup.pids.max", "cri-shim.io/pids-limit", "cri-shim.io/files-limit")
NUMBERS = ("-1", "0", "7", "4194305", "x", "9" * 18)
PROPAGATIONS = ("PROPAGATION_PRIVATE", "PROPAGATION_HOST_TO_CONTAINER", "PROPAGATION_BIDIRECTIONAL")
CAPABILITIES = ("CHOWN", "CAP_KILL", "net_raw", "SETUID", "ALL")


def some(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


def host_paths(base: Path) -> st.SearchStrategy[str]:
    return st.sampled_from([f"{base}/{name}" for name in ("dir", "link", "missing/er")])


def mounts(base: Path, image: str) -> st.SearchStrategy[list[api.Mount]]:
    bound = st.builds(
        api.Mount,
        container_path=st.sampled_from([p for p in PLACES if p != "/etc/hosts"]),
        host_path=host_paths(base),
        readonly=st.booleans(),
        propagation=st.sampled_from(PROPAGATIONS),
        mount_options=st.lists(st.sampled_from(["noexec", "nodev", "nosuid"]), max_size=3),
        selinux_relabel=st.booleans(),
    )
    file = st.builds(
        api.Mount, container_path=st.just("/etc/hosts"), host_path=st.just(f"{base}/file")
    )
    volume = st.builds(
        api.Mount,
        container_path=st.sampled_from(["/image", "/data"]),
        image=st.just(api.ImageSpec(image=image)),
        image_sub_path=st.sampled_from(["", "bin", "etc/passwd"]),
        readonly=st.just(True),
    ).filter(lambda m: m.image_sub_path != "etc/passwd" or m.container_path == "/image")
    return st.lists(st.one_of(bound, file, volume), max_size=3)


RESOURCES = some(
    {
        "cpu_period": st.integers(1000, 1_000_000),
        "cpu_quota": st.one_of(st.just(-1), st.integers(5000, 10_000_000)),
        "cpu_shares": st.integers(1, 300_000),
        "memory_limit_in_bytes": st.sampled_from([-1, 32 << 20, 1 << 30]),
        "memory_swap_limit_in_bytes": st.just(-1),
        "oom_score_adj": st.integers(-1000, 1000),
        "cpuset_cpus": st.sampled_from(["0", "0-1", "0,1"]),
        "cpuset_mems": st.just("0"),
        "hugepage_limits": st.just([api.HugepageLimit(page_size="2MB", limit=0)]),
    }
).map(lambda fields: api.LinuxContainerResources(**fields))
CONTEXT = some(
    {
        "run_as_user": IDS.map(lambda value: api.Int64Value(value=value)),
        "supplemental_groups": st.lists(IDS, max_size=4),
        "supplemental_groups_policy": st.sampled_from(["Merge", "Strict"]),
        "readonly_rootfs": st.booleans(),
        "no_new_privs": st.booleans(),
        "capabilities": some(
            {
                "add_capabilities": st.lists(st.sampled_from(CAPABILITIES), max_size=2),
                "drop_capabilities": st.lists(st.sampled_from(CAPABILITIES), max_size=2),
                "add_ambient_capabilities": st.lists(st.sampled_from(CAPABILITIES), max_size=2),
            }
        ).map(lambda fields: api.Capability(**fields)),
        "privileged": st.booleans(),
        "apparmor": st.sampled_from(["RuntimeDefault", "Unconfined"]).map(
            lambda kind: api.SecurityProfile(profile_type=kind)  # type: ignore[arg-type]
        ),
        "seccomp_profile_path": st.sampled_from(["", "runtime/default", "unconfined"]),
        "seccomp": st.sampled_from(["RuntimeDefault", "Unconfined"]).map(
            lambda kind: api.SecurityProfile(profile_type=kind)  # type: ignore[arg-type]
        ),
        "masked_paths": st.lists(st.sampled_from(["/proc/kcore", "/etc", "/none"]), max_size=2),
        "readonly_paths": st.lists(st.sampled_from(["/proc/sys", "/usr", "/none"]), max_size=2),
        "namespace_options": st.sampled_from(["POD", "CONTAINER", "NODE"]).map(
            lambda mode: api.NamespaceOption(pid=mode)  # type: ignore[arg-type]
        ),
    }
).map(lambda fields: api.LinuxContainerSecurityContext(**fields))


DEVICES = st.builds(
    api.Device,
    host_path=st.sampled_from(["/dev/null", "/dev/zero"]),
    container_path=st.sampled_from(["", "/dev/mine", "/dev/null", "/dev/a/b", "/opt/device"]),
    permissions=st.sampled_from(["", "r", "rw", "mrw"]),
)


def right(base: Path, image: str) -> st.SearchStrategy[dict[str, Any]]:
    """Fields of requests that a demanding, sane client could make."""
    return some(
        {
            "args": st.lists(st.just("3601"), max_size=2),
            "working_dir": st.sampled_from(
                ["", "/", "/etc", "/new/dir", "//usr/../srv", "/data/x"]
            ),
            "envs": st.lists(
                st.builds(api.KeyValue, key=NAMES, value=st.binary(max_size=20).filter(no_nul)),
                max_size=4,
            ),
            "labels": st.dictionaries(WORDS, WORDS, max_size=3),
            "annotations": st.one_of(
                st.dictionaries(
                    WORDS.filter(lambda key: not key.startswith(("cdi.k8s.io/", "cgroup", "cri-"))),
                    WORDS,
                    max_size=3,
                ),
                st.sampled_from(["-1", "1", "4194304"]).map(lambda n: {"cgroup.pids.max": n}),
                st.just({"cri-shim.io/files-limit": "-1"}),
            ),
            "mounts": mounts(base, image),
            "devices": st.lists(DEVICES, max_size=2),
            "log_path": st.sampled_from(["", "a.log", "main/0.log", "ä b/0.log"]),
            "stdin": st.booleans(),
            "stdin_once": st.booleans(),
            "tty": st.booleans(),
            "stop_signal": st.sampled_from(api.Signal.keys()),
            "linux": some({"resources": RESOURCES, "security_context": CONTEXT}).map(
                lambda fields: api.LinuxContainerConfig(**fields)
            ),
        }
    )


def no_nul(value: bytes) -> bool:
    return b"\0" not in value


# --- making them -------------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """What mounts are taken from."""
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/x").mkdir()
    (tmp_path / "link").symlink_to("dir")
    (tmp_path / "file").touch()
    return tmp_path


def tried(
    pod: Pod, fields: st.SearchStrategy[dict[str, Any]], count: int, judge: Callable[..., None]
) -> None:
    """Make containers of `count` requests, one after the other, and have each judged: config, then error or none."""

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=count < 100,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(fields)
    def each(given_fields: dict[str, Any]) -> None:
        config = pod.container("sleep", "3600")
        config.MergeFrom(api.ContainerConfig(**given_fields))
        error: grpc.RpcError | None = None
        container = ""
        try:
            container = pod.create(config)
            pod.client.start(container)
            assert pod.client.status(container).status.state == api.CONTAINER_RUNNING
        except grpc.RpcError as raised:
            error = raised
        finally:
            if container:
                pod.client.remove(container)
        judge(config, error)

    each()


@pytest.mark.parametrize("count", FEW_OR_MANY)
def test_right_requests_are_started(client: Client, image: str, base: Path, count: int) -> None:
    pod_config = client.pod_config()
    pod_config.linux.security_context.privileged = True
    pod = Pod.run(client, image, pod_config)
    outcomes: list[str] = []

    def judge(config: api.ContainerConfig, error: Any) -> None:
        outcomes.append("" if error is None else f"{error.details()}\n{short(config)}")

    tried(pod, right(base, image), count, judge)
    refused = list(filter(None, outcomes))
    assert len(refused) <= (1 - ACCEPTED_AT_LEAST) * len(outcomes), "\n".join(refused)


@pytest.mark.parametrize("count", FEW_OR_MANY)
def test_any_request_is_started_or_refused_and_never_our_mistake(
    client: Client, image: str, base: Path, count: int
) -> None:
    pod = Pod.run(client, image)

    def harmless(fields: dict[str, Any]) -> dict[str, Any]:
        """What a container may be made of here: no program but ours, no file of this machine's."""
        for name in ("command", "args", "metadata", "image", "log_path"):
            fields.pop(name, None)
        for mount in fields.get("mounts", ()):
            if mount.get("host_path", "").startswith("/"):
                mount["host_path"] = f"{base}{mount['host_path']}"
        return fields

    def judge(config: api.ContainerConfig, error: Any) -> None:
        if error is not None:
            check_refusal(config, error)

    config = api.ContainerConfig.DESCRIPTOR
    tried(pod, st.one_of(messages(config), few(config)).map(harmless), count, judge)
    assert os.listdir(base)


@pytest.mark.parametrize("count", FEW_OR_MANY)
def test_any_update_is_made_or_refused_and_never_our_mistake(
    client: Client, image: str, count: int
) -> None:
    pod = Pod.run(client, image)
    containers: list[str] = []
    resources = api.LinuxContainerResources.DESCRIPTOR

    @settings(
        max_examples=4 * count,
        deadline=None,
        database=None,
        derandomize=count < 100,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.one_of(messages(resources), few(resources)),
        st.dictionaries(st.sampled_from(LIMITS), st.sampled_from(NUMBERS), max_size=1),
    )
    def each(fields: dict[str, Any], annotations: dict[str, str]) -> None:
        # A limit of memory that holds may end it: that is what it is for.
        if not containers or client.status(containers[-1]).status.state != api.CONTAINER_RUNNING:
            containers.append(pod.sleeper())
        request = api.UpdateContainerResourcesRequest(
            container_id=containers[-1],
            linux=api.LinuxContainerResources(**fields),
            annotations=annotations,
        )
        try:
            client.runtime.UpdateContainerResources(request, timeout=20)
        except grpc.RpcError as error:
            check_refusal(request, error)

    each()


def check_refusal(request: Message, error: Any) -> None:
    """It is one that CRI knows, and names a field of the request."""
    told = f"{error.code()}: {error.details()}\n{short(request)}"
    assert error.code() in REFUSALS, told
    assert names_a_field_of(request, error.details()), told


def short(request: Message) -> str:
    return text_format.MessageToString(request, as_one_line=True)
