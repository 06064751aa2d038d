from dataclasses import replace
from typing import Any

import pytest

from cri_shim._pb.cri.v1.api_pb2 import (
    CDIDevice,
    ContainerConfig,
    KeyValue,
    LinuxContainerResources,
    LinuxContainerSecurityContext,
    WindowsContainerConfig,
)
from cri_shim.errors import InvalidArgumentError
from cri_shim.oci.spec.container import encode_spec
from cri_shim.oci.spec.hooks import parse_hook_file
from cri_shim.oci.spec.inputs import Ulimit
from cri_shim.oci.spec.selinux import Labels
from tests.unit.oci.spec.cases import (
    GOLDEN_CGROUP,
    MAPPING_RUNC,
    RUNC,
    USERS,
    container_config,
    container_facts,
    container_spec,
    sandbox_facts,
)


def test_config_with_nothing_but_an_image_gives_a_whole_spec() -> None:
    spec = container_spec(ContainerConfig())
    assert spec["process"]["oomScoreAdj"] == 0, "the daemon's own must not be inherited"
    assert spec["process"]["args"] == ["/bin/busybox", "sleep", "60"]
    assert "hostname" not in spec, "a joined UTS namespace has one already"


def test_privileged_container_needs_a_privileged_sandbox() -> None:
    config = container_config(context=LinuxContainerSecurityContext(privileged=True))
    with pytest.raises(InvalidArgumentError, match="not privileged"):
        container_spec(config)
    assert container_spec(config, sandbox=sandbox_facts(GOLDEN_CGROUP, privileged=True))


@pytest.mark.parametrize(
    "fields",
    [
        {"CDI_devices": [CDIDevice(name="vendor.com/gpu=0")]},
        {"annotations": {"cdi.k8s.io/x": "vendor.com/gpu=0"}},
    ],
)
def test_cdi_is_refused_rather_than_left_out(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="CDI"):
        container_spec(container_config(**fields))


def test_windows_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="windows"):
        container_spec(container_config(windows=WindowsContainerConfig()))


def test_limits_and_profile_of_the_node_reach_the_process() -> None:
    node = replace(
        GOLDEN_CGROUP.node,
        default_ulimits={"nofile": Ulimit(1, 2)},
        apparmor_profiles=frozenset({"cri-shim-default"}),
        apparmor_default_profile="cri-shim-default",
        min_oom_score_adj=-100,
    )
    config = container_config(resources=LinuxContainerResources(oom_score_adj=-998))
    process = container_spec(config, node=node)["process"]
    assert process["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}]
    assert process["apparmorProfile"] == "cri-shim-default"
    assert process["oomScoreAdj"] == -100


def test_two_specs_share_nothing_that_one_could_spoil() -> None:
    first, second = container_spec(container_config()), container_spec(container_config())
    first["mounts"][0]["options"].append("spoilt")
    first["linux"]["maskedPaths"].clear()
    assert "spoilt" not in second["mounts"][0]["options"]
    assert second["linux"]["maskedPaths"]


def test_any_environment_bytes_make_valid_json() -> None:
    config = container_config(envs=[KeyValue(key="RAW", value=bytes(range(1, 256)))])
    assert b"RAW=" in encode_spec(container_spec(config))


def test_labels_reach_process_and_mounts() -> None:
    labels = Labels("u:r:container_t:s0:c1,c2", "u:object_r:container_file_t:s0:c1,c2")
    facts = container_facts(GOLDEN_CGROUP, labels=labels)
    spec = container_spec(container_config(), container=facts)
    assert spec["process"]["selinuxLabel"] == labels.process
    assert spec["linux"]["mountLabel"] == labels.files
    plain = container_spec(container_config())
    assert "selinuxLabel" not in plain["process"]
    assert "mountLabel" not in plain["linux"]


def test_hooks_are_chosen_by_the_annotations_of_container_and_pod() -> None:
    document = b"""{"version": "1.0.0", "hook": {"path": "/bin/true"},
        "when": {"annotations": {"^gpu$": "^yes$"}}, "stages": ["prestart"]}"""
    facts = container_facts(GOLDEN_CGROUP, hooks=(parse_hook_file(document, "h.json"),))
    asking = container_config(annotations={"gpu": "yes"})
    assert "prestart" in container_spec(asking, container=facts)["hooks"]
    pod = sandbox_facts(GOLDEN_CGROUP, annotations={"gpu": "yes"})
    assert "hooks" in container_spec(container_config(), container=facts, sandbox=pod)
    pod = sandbox_facts(GOLDEN_CGROUP, annotations={"gpu": "no"})
    assert "hooks" not in container_spec(asking, container=facts, sandbox=pod), "the pod's count"


def test_unmasked_proc_is_for_pods_with_users_of_their_own() -> None:
    pod = sandbox_facts(GOLDEN_CGROUP, users=USERS)
    spec = container_spec(container_config(), sandbox=pod, handler=MAPPING_RUNC)
    assert spec["linux"]["maskedPaths"] == spec["linux"]["readonlyPaths"] == []
    assert container_spec(container_config())["linux"]["maskedPaths"]


def test_cve_2023_6476_annotations_lift_no_limit() -> None:
    lifting = {
        "io.kubernetes.cri-o.UnifiedCgroup.app": "memory.max=max;pids.max=max",
        "io.kubernetes.cri-o.unified-cgroup": "memory.max=max",
    }
    pod = sandbox_facts(GOLDEN_CGROUP, annotations=lifting)
    wide_open = replace(RUNC, pod_annotations=("*",), container_annotations=("*",))
    spec = container_spec(container_config(annotations=lifting), sandbox=pod, handler=wide_open)
    assert spec["linux"]["resources"] == container_spec(container_config())["linux"]["resources"]
