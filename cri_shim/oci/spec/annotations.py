"""Annotations of the spec: ours, and what the handler's allow-lists let through. Nothing else.

Rules of the file: ours always win. However wide a list is, keys that the runtime would take as orders about the
host are not passed (CVE-2024-3154: any systemd property by annotation).
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from cri_shim.oci.spec.inputs import HandlerKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cri_shim.oci.spec.inputs import HandlerFacts, SandboxFacts

_CRI = "io.kubernetes.cri."
_DOCKER_TYPE = "io.kubernetes.docker.type"
_SANDBOX_ID = "io.kubernetes.sandbox.id"
_NEVER = (
    *("org.systemd.property.", _CRI, _DOCKER_TYPE, _SANDBOX_ID),
    # crun opens files of the node by these, and takes properties and seccomp's answers from elsewhere.
    *("run.oci.hooks.", "run.oci.systemd.", "run.oci.seccomp"),
)
_OF_THE_VM = ("com.github.containers.virtcontainers.", "io.katacontainers.")
"""Sizes of a pod's virtual machine: they concern who creates it, the pause container, alone."""


def build_sandbox_annotations(sandbox: SandboxFacts, handler: HandlerFacts) -> dict[str, str]:
    """The pause container's annotations."""
    annotations = _allowed(sandbox.annotations, handler.pod_annotations)
    annotations |= _of_sandbox(sandbox, "sandbox")
    if handler.kind is HandlerKind.VM:
        annotations |= {_DOCKER_TYPE: "podsandbox", _SANDBOX_ID: sandbox.id}
    return annotations


def build_container_annotations(
    requested: Mapping[str, str],
    *,
    sandbox: SandboxFacts,
    handler: HandlerFacts,
    container_name: str,
    image_name: str,
) -> dict[str, str]:
    """A container's annotations: the allowed ones of its pod, then its own, then ours."""
    annotations = {
        key: value
        for key, value in _allowed(sandbox.annotations, handler.pod_annotations).items()
        if not key.startswith(_OF_THE_VM)
    }
    annotations |= _allowed(requested, handler.container_annotations)
    annotations |= _of_sandbox(sandbox, "container")
    annotations |= {f"{_CRI}container-name": container_name, f"{_CRI}image-name": image_name}
    if handler.kind is HandlerKind.VM:
        annotations |= {_DOCKER_TYPE: "container", _SANDBOX_ID: sandbox.id}
    return annotations


def _of_sandbox(sandbox: SandboxFacts, container_type: str) -> dict[str, str]:
    return {
        f"{_CRI}container-type": container_type,
        f"{_CRI}sandbox-id": sandbox.id,
        f"{_CRI}sandbox-name": sandbox.name,
        f"{_CRI}sandbox-namespace": sandbox.namespace,
        f"{_CRI}sandbox-uid": sandbox.uid,
    }


def _allowed(annotations: Mapping[str, str], patterns: Sequence[str]) -> dict[str, str]:
    if not patterns:
        return {}
    return {
        key: value
        for key, value in annotations.items()
        if not key.startswith(_NEVER) and any(fnmatchcase(key, pattern) for pattern in patterns)
    }
