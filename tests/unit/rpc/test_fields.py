from __future__ import annotations

import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import InvalidArgumentError
from cri_shim.rpc.fields import require

REQUEST = api.CreateContainerRequest(
    pod_sandbox_id="1", config=api.ContainerConfig(metadata=api.ContainerMetadata(attempt=3))
)


def test_what_is_given_passes() -> None:
    require(REQUEST, "pod_sandbox_id", "config", "config.metadata")
    require(api.ExecSyncRequest(cmd=["ls"]), "cmd")


@pytest.mark.parametrize("path", ["config.metadata.name", "config.image", "config.command"])
def test_the_first_missing_field_is_named_by_its_path(path: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^CreateContainerRequest: {path} is required$"):
        require(REQUEST, "pod_sandbox_id", path, "sandbox_config")


def test_an_empty_message_counts_as_absent() -> None:
    request = api.RunPodSandboxRequest(config=api.PodSandboxConfig())
    with pytest.raises(InvalidArgumentError, match="config is required"):
        require(request, "config")
