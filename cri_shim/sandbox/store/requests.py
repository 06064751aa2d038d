"""Whether a request can be served now: what tells it from a retry, and whom its object makes wait."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from cri_shim.errors import UnavailableError, WrongStateError
from cri_shim.sandbox.store.model import SandboxState

if TYPE_CHECKING:
    from cri_shim.operations import Operations
    from cri_shim.sandbox.store.store import Sandbox


def request_digest(request: bytes, *context: str) -> str:
    """What tells a retry from a different request: of the deterministic serialisation and its context."""
    digest = hashlib.sha256(request)
    for part in context:
        digest.update(b"\0" + part.encode())
    return digest.hexdigest()


def require_ready(sandbox: Sandbox) -> None:
    """Raises WrongStateError, with the reason, for a sandbox that is not ready."""
    if sandbox.state is not SandboxState.READY:
        why = sandbox.status.reason or "it is still being created"
        raise WrongStateError(f"sandbox {sandbox.id} is not ready: {why}")


def name_is_going(kind: str, name: str, holder_id: str, operations: Operations) -> UnavailableError:
    """For whoever wants a name whose holder is being removed, or undone after a start."""
    return UnavailableError(
        f"{kind} name {name} is held by {kind} {holder_id}, which is being taken away "
        f"({operations.doing(holder_id)}): call again, or raise the attempt"
    )
