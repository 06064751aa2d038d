"""Checks whether a request can be served now, and distinguishes retries from new requests."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from cri_shim.errors import UnavailableError, WrongStateError
from cri_shim.sandbox.store.model import SandboxState

if TYPE_CHECKING:
    from cri_shim.operations import Operations
    from cri_shim.sandbox.store.store import Sandbox


def request_digest(request: bytes, *context: str) -> str:
    """The digest of a request's deterministic serialisation and its context. A retry has the same one."""
    digest = hashlib.sha256(request)
    for part in context:
        digest.update(b"\0" + part.encode())
    return digest.hexdigest()


def require_ready(sandbox: Sandbox) -> None:
    """Raises WrongStateError with the reason if the sandbox is not ready."""
    if sandbox.state is not SandboxState.READY:
        why = sandbox.status.reason or "it is still being created"
        raise WrongStateError(f"sandbox {sandbox.id} is not ready: {why}")


def name_is_going(kind: str, name: str, holder_id: str, operations: Operations) -> UnavailableError:
    """The error for a request whose name belongs to an object that is being removed, or undone after a start."""
    return UnavailableError(
        f"{kind} name {name} is held by {kind} {holder_id}, which is being removed "
        f"({operations.doing(holder_id)}): retry, or use a higher attempt"
    )
