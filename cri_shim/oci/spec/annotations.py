"""Annotations of the spec: ours, and what the handler's allow-lists let through. Nothing else.

Rules of the file:
- Ours always win.
- A wide pattern is meant for what workloads say about themselves. What a runtime takes as an order needs its own word:
  the whole key, or for a virtual machine or another sandbox, a pattern that begins with the runtime's namespace. So an
  order that a later runtime invents in its namespace does not pass by itself.
- Orders about the node's own files, services and filters pass for nobody (CVE-2024-3154: any systemd property).
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from cri_shim.config.model import HandlerKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cri_shim.oci.spec.inputs import HandlerFacts, SandboxFacts

_CRI = "io.kubernetes.cri."
_DOCKER_TYPE = "io.kubernetes.docker.type"
_SANDBOX_ID = "io.kubernetes.sandbox.id"
_NEVER = (
    *("org.systemd.property.", _CRI, _DOCKER_TYPE, _SANDBOX_ID),
    # crun opens files and sockets of the node by these, and takes properties and seccomp's answers from elsewhere.
    *("run.oci.hooks.", "run.oci.systemd.", "run.oci.seccomp", "run.oci.pidfd_"),
)
_BY_NAME = ("run.oci.", "module.wasm.", "org.criu.", "bundle")
"""Orders to crun and runc, which may be allowed one by one; a runtime may name more of them itself."""
_OF_THE_VM = ("com.github.containers.virtcontainers.", "io.katacontainers.")
"""Sizes of a pod's virtual machine: they concern who creates it, the pause container, alone."""
_BY_NAMESPACE = (*_OF_THE_VM, "dev.gvisor.")
"""Orders to sandboxes, which may be allowed together."""


def build_sandbox_annotations(sandbox: SandboxFacts, handler: HandlerFacts) -> dict[str, str]:
    """The pause container's annotations."""
    annotations = _allowed(sandbox.annotations, handler.pod_annotations, handler)
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
        for key, value in _allowed(sandbox.annotations, handler.pod_annotations, handler).items()
        if not key.startswith(_OF_THE_VM)
    }
    annotations |= _allowed(requested, handler.container_annotations, handler)
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


def _allowed(
    annotations: Mapping[str, str], patterns: Sequence[str], handler: HandlerFacts
) -> dict[str, str]:
    if not patterns:
        return {}
    by_name = (*_BY_NAME, *handler.unsafe_annotations)
    return {
        key: value
        for key, value in annotations.items()
        if not key.startswith(_NEVER)
        and any(_lets_through(pattern, key, by_name) for pattern in patterns)
    }


def _lets_through(pattern: str, key: str, by_name: tuple[str, ...]) -> bool:
    if key.startswith(by_name):
        return pattern == key
    for namespace in _BY_NAMESPACE:
        if key.startswith(namespace) and not pattern.startswith(namespace):
            return False
    return fnmatchcase(key, pattern)
