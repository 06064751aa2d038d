"""Runtime-specs of containers, and what is looked up on the way."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

import msgspec
import pytest
from msgspec import structs

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import (
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    WrongStateError,
)
from cri_shim.host.files import read_in_root
from cri_shim.oci.cdi_registry import CdiRegistry
from cri_shim.oci.hook_files import HookFiles
from cri_shim.oci.spec.selinux import parse_contexts
from cri_shim.sandbox.spec.apparmor import AppArmor
from cri_shim.sandbox.spec.selinux import SELinux
from cri_shim.sandbox.store.model import ContainerRecord, ContainerStatus
from tests.fakes.apparmor import FakeAppArmor
from tests.fakes.node_harness import container_config, pod_config
from tests.unit.sandbox.records import make_container, make_sandbox
from tests.unit.sandbox.spec_node import READY, RUNNING, Node

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.host.process import Reaper
    from cri_shim.sandbox.store.store import Container


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


# --- containers --------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_container_joins_its_pods_namespaces_and_files(node: Node) -> None:
    sandbox = make_sandbox(status=READY)
    container = make_container()
    spec, user = await node.spec(container, sandbox)
    namespaces = {n["type"]: n.get("path") for n in spec["linux"]["namespaces"]}
    assert namespaces["ipc"] == "/proc/4242/ns/ipc"
    assert namespaces["pid"] == "/proc/4242/ns/pid"
    assert namespaces["mount"] is None
    mounts = {m["destination"]: m["source"] for m in spec["mounts"]}
    assert mounts["/etc/hosts"] == str(node.paths.sandbox(sandbox.id).etc_dir / "hosts")
    assert mounts["/dev/shm"] == str(node.paths.sandbox(sandbox.id).shm_dir)
    assert (user.uid, user.gid) == (0, 0)


@pytest.mark.asyncio
async def test_a_user_by_name_is_looked_up_in_the_containers_own_files(node: Node) -> None:
    container = make_container()
    node.etc(
        container,
        passwd="web:x:1001:1002::/srv:/bin/sh\n",
        group="web:x:1002:\nextra:x:1003:web\n",
    )
    spec, user = await node.spec(container, image=node.image(user="web"))
    assert (user.uid, user.gid) == (1001, 1002)
    assert set(user.additional_gids) == {1002, 1003}
    assert spec["process"]["user"]["uid"] == 1001


@pytest.mark.asyncio
async def test_account_files_that_lead_out_of_the_root_are_not_followed(
    node: Node, tmp_path: Path
) -> None:
    container = make_container()
    node.etc(container)
    (tmp_path / "passwd").write_text("web:x:0:0::/:/bin/sh\n")
    etc = node.paths.container(container.id).rootfs_dir / "etc"
    (etc / "passwd").symlink_to(tmp_path / "passwd")
    assert read_in_root(etc.parent, "etc/passwd", 1000) is None
    with pytest.raises(InvalidArgumentError, match="web"):
        await node.spec(container, image=node.image(user="web"))


@pytest.mark.asyncio
async def test_an_image_without_accounts_runs_as_a_number(node: Node) -> None:
    _, user = await node.spec(make_container(), image=node.image(user="1234"))
    assert user.uid == 1234


@pytest.mark.asyncio
async def test_the_image_is_called_what_the_user_called_it(node: Node) -> None:
    config = container_config()
    config.image.user_specified_image = "docker.io/library/busybox:1"
    spec, _ = await node.spec(make_container(config=config))
    assert "docker.io/library/busybox:1" in spec["annotations"].values()
    spec, _ = await node.spec(make_container("d" * 64))
    assert "busybox" in spec["annotations"].values()


@pytest.mark.asyncio
async def test_requested_devices_are_looked_at_on_the_host(node: Node) -> None:
    config = container_config()
    config.linux.security_context.SetInParent()
    config.devices.add(host_path="/dev/null", container_path="/dev/nothing", permissions="rw")
    spec, _ = await node.spec(make_container(config=config))
    [device] = [d for d in spec["linux"]["devices"] if d["path"] == "/dev/nothing"]
    assert (device["major"], device["minor"]) == (1, 3)


@pytest.mark.asyncio
async def test_a_privileged_container_sees_every_device(node: Node) -> None:
    pod = pod_config()
    pod.linux.security_context.privileged = True
    config = container_config()
    config.linux.security_context.privileged = True
    spec, _ = await node.spec(make_container(config=config), make_sandbox(config=pod, status=READY))
    assert {"/dev/null", "/dev/zero"} <= {device["path"] for device in spec["linux"]["devices"]}


@pytest.mark.asyncio
async def test_bytes_that_are_no_text_are_worth_a_warning_only(node: Node) -> None:
    config = container_config()
    config.envs.add(key="RAW", value=b"\xff")
    spec, _ = await node.spec(make_container(config=config))
    assert any(entry.startswith("RAW=") for entry in spec["process"]["env"])


# --- the namespace of another container --------------------------------------------------------------------------


def targeting(target_id: str) -> Container:
    config = container_config("debug")
    options = config.linux.security_context.namespace_options
    options.pid = api.TARGET
    options.target_id = target_id
    return make_container("d" * 64, name="debug", config=config)


@pytest.mark.asyncio
async def test_a_debug_container_joins_its_targets_processes(node: Node) -> None:
    target = make_container(status=RUNNING)
    node.store.create(target)
    spec, _ = await node.spec(targeting(target.id))
    [pid] = [n for n in spec["linux"]["namespaces"] if n["type"] == "pid"]
    assert pid["path"] == "/proc/777/ns/pid"


@pytest.mark.asyncio
async def test_a_target_of_another_pod_is_refused(node: Node) -> None:
    target = make_container(sandbox_id="9" * 64, status=RUNNING)
    node.store.create(target)
    with pytest.raises(InvalidArgumentError, match="another sandbox"):
        await node.spec(targeting(target.id))


@pytest.mark.asyncio
async def test_a_target_that_does_not_run_or_is_not_there_is_refused(node: Node) -> None:
    with pytest.raises(NotFoundError, match=r"namespace_options\.target_id"):
        await node.spec(targeting("c" * 64))
    with pytest.raises(InvalidArgumentError, match=r"namespace_options\.target_id: must be set"):
        await node.spec(targeting(""))
    target = make_container(status=ContainerStatus(committed_at_ns=1))
    node.store.create(target)
    with pytest.raises(WrongStateError, match=r"target_id: .*not running"):
        await node.spec(targeting(target.id))


def test_the_stop_signal_is_the_requests_or_the_images(node: Node) -> None:
    config = container_config()
    assert node.specs.stop_signal(config, node.image()) == 15
    assert node.specs.stop_signal(config, node.image(stop_signal="SIGINT")) == 2
    config.stop_signal = api.SIGNAL_SIGUSR1
    assert node.specs.stop_signal(config, node.image(stop_signal="SIGINT")) == 10


# --- what the node provides --------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_cdi_devices_are_found_in_the_nodes_files_and_looked_at(
    node: Node, tmp_path: Path
) -> None:
    edits = {"deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/null"}]}
    document = {
        "cdiVersion": "0.5.0",
        "kind": "vendor.com/gpu",
        "devices": [{"name": "0", "containerEdits": edits}],
    }
    (tmp_path / "gpu.json").write_text(json.dumps(document))
    node.provide(cdi=CdiRegistry([tmp_path]))
    config = container_config()
    config.CDI_devices.add(name="vendor.com/gpu=0")
    spec, _ = await node.spec(make_container(config=config))
    [device] = [d for d in spec["linux"]["devices"] if d["path"] == "/dev/gpu0"]
    assert (device["type"], device["major"], device["minor"]) == ("c", 1, 3)


@pytest.mark.asyncio
async def test_hooks_are_those_of_the_nodes_files_and_their_programs_must_be_fit(
    node: Node, tmp_path: Path
) -> None:
    hook = {"version": "1.0.0", "when": {"always": True}, "stages": ["prestart"]}
    file = tmp_path / "hook.json"
    file.write_text(json.dumps({**hook, "hook": {"path": "/bin/true"}}))
    node.provide(hooks=HookFiles([tmp_path]))
    spec, _ = await node.spec(make_container())
    assert spec["hooks"]["prestart"] == [{"path": "/bin/true"}]
    file.write_text(json.dumps({**hook, "hook": {"path": "/nonexistent"}}))
    with pytest.raises(UnavailableError, match="/nonexistent"):
        await node.spec(make_container("d" * 64))


@pytest.mark.asyncio
async def test_labels_are_given_out_recorded_and_used(node: Node, tmp_path: Path) -> None:
    contexts = parse_contexts("process = u:r:container_t:s0\nfile = u:r:file_t:s0", "test")
    node.provide(selinux=SELinux(contexts, lambda: ()))
    pod = node.sandbox_specs.labels(pod_config())
    sandbox = make_sandbox(status=READY)
    sandbox.record = structs.replace(sandbox.record, labels=pod)
    container = make_container()
    labels = node.specs.labels(sandbox, container.config)
    assert labels == pod
    container.record = structs.replace(container.record, labels=labels)
    read = msgspec.json.decode(msgspec.json.encode(container.record), type=ContainerRecord)
    assert read.labels == pod, "a restart keeps them"
    spec, _ = await node.spec(container, sandbox)
    assert spec["process"]["selinuxLabel"] == pod.process
    assert spec["linux"]["mountLabel"] == pod.files


@pytest.mark.asyncio
async def test_profiles_are_those_that_are_loaded_now(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = FakeAppArmor(tmp_path / "kernel", monkeypatch, "mine")
    apparmor = AppArmor(cast("Reaper", None), "mine", tmp_path / "file", root=kernel.root)
    node.provide(apparmor=apparmor)
    config = container_config()
    profile = api.SecurityProfile(profile_type=api.SecurityProfile.Localhost, localhost_ref="mine")
    config.linux.security_context.apparmor.CopyFrom(profile)
    spec, _ = await node.spec(make_container(config=config))
    assert spec["process"]["apparmorProfile"] == "mine"
    pod = pod_config()
    pod.linux.security_context.apparmor.CopyFrom(profile)
    node.sandbox_specs.plan(pod, "runc")
    kernel.forget()
    with pytest.raises(InvalidArgumentError, match="'mine'"):
        node.sandbox_specs.plan(pod, "runc")
    with pytest.raises(InvalidArgumentError, match="'mine'"):
        await node.spec(make_container("d" * 64, config=config))
