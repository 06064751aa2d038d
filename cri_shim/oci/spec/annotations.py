"""The spec's annotations: our own, and those that the handler's allow-lists pass. No others.

Rules:
- Ours take precedence.
- A wide pattern passes descriptive annotations only. One that instructs the runtime must be allowed explicitly: by its
  whole key, or, for virtual machines and other sandboxes, by a pattern that begins with the runtime's namespace. So an
  instruction that a later runtime adds to its namespace does not pass automatically.
- Instructions about the node's own files, services and filters never pass (CVE-2024-3154: any systemd property).
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from cri_shim.config.model import HandlerKind
from cri_shim.oci.spec.vm_sizes import check_vm_sizes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cri_shim.oci.spec.inputs import HandlerFacts, NodeFacts, SandboxFacts

_CRI = "io.kubernetes.cri."
_DOCKER_TYPE = "io.kubernetes.docker.type"
_SANDBOX_ID = "io.kubernetes.sandbox.id"
_NEVER = (
    *("org.systemd.property.", _CRI, _DOCKER_TYPE, _SANDBOX_ID),
    # With these, crun opens files and sockets of the node, sets systemd properties, and delegates seccomp decisions.
    *("run.oci.hooks.", "run.oci.systemd.", "run.oci.seccomp", "run.oci.pidfd_"),
)
_BY_NAME = ("run.oci.", "module.wasm.", "org.criu.", "bundle")
"""Instructions to crun and runc, which can be allowed one by one. A runtime may report more of its own."""
_OF_THE_VM = ("com.github.containers.virtcontainers.", "io.katacontainers.")
"""The size of a pod's virtual machine. They concern only its creator, the pause container."""
_BY_NAMESPACE = (*_OF_THE_VM, "dev.gvisor.")
"""Instructions to sandboxes, which can be allowed by namespace."""


def check_sandbox_annotations(
    annotations: Mapping[str, str], handler: HandlerFacts, node: NodeFacts
) -> None:
    """Raises InvalidArgumentError for a size that would reach the runtime and that no virtual machine can have."""
    if handler.kind is HandlerKind.VM:
        check_vm_sizes(_allowed(annotations, handler.pod_annotations, handler), node.cpus)


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
    """A container's annotations. Later ones take precedence: allowed ones of its pod, its own allowed ones, ours."""
    annotations = {
        key: value
        for key, value in _allowed(sandbox.annotations, handler.pod_annotations, handler).items()
        if not key.startswith(_OF_THE_VM)
    }
    annotations |= {
        key: value
        for key, value in _allowed(requested, handler.container_annotations, handler).items()
        if not key.startswith(_OF_THE_VM)
    }
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
