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
from cri_shim.errors import InvalidArgumentError, UnsupportedError
from cri_shim.oci.spec.container import encode_spec
from cri_shim.oci.spec.inputs import Ulimit
from tests.unit.oci.spec.cases import (
    GOLDEN_PLACE,
    container_config,
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
    assert container_spec(config, sandbox=sandbox_facts(GOLDEN_PLACE, privileged=True))


@pytest.mark.parametrize(
    "fields",
    [
        {"CDI_devices": [CDIDevice(name="vendor.com/gpu=0")]},
        {"annotations": {"cdi.k8s.io/x": "vendor.com/gpu=0"}},
    ],
)
def test_cdi_is_refused_rather_than_left_out(fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="CDI"):
        container_spec(container_config(**fields))


def test_windows_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="windows"):
        container_spec(container_config(windows=WindowsContainerConfig()))


def test_limits_and_profile_of_the_node_reach_the_process() -> None:
    node = replace(
        GOLDEN_PLACE.node,
        default_ulimits={"nofile": Ulimit(1, 2)},
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
