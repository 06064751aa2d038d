"""What tells a request from a retry, and what is said to one that has to wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from cri_shim.errors import UnavailableError, WrongStateError
from cri_shim.operations import Operations, step
from cri_shim.sandbox.store.model import SandboxState
from cri_shim.sandbox.store.requests import name_is_going, request_digest, require_ready

if TYPE_CHECKING:
    from cri_shim.sandbox.store.store import Sandbox


class Status:
    reason = ""


class AnySandbox:
    """As much of a sandbox as is looked at."""

    id = "12ab"

    def __init__(self, state: SandboxState, reason: str = "") -> None:
        self.state = state
        self.status = Status()
        self.status.reason = reason


def test_a_digest_is_of_the_request_and_of_where_its_parts_end() -> None:
    digest = request_digest(b"request", "sandbox", "runc")
    assert request_digest(b"request", "sandbox", "runc") == digest
    others = [
        request_digest(b"requests", "sandbox", "runc"),
        request_digest(b"request", "sandbox", "kata"),
        request_digest(b"request", "sandboxrunc"),
        request_digest(b"request", "sandbox", "runc", ""),
    ]
    assert digest not in others


def test_only_a_ready_sandbox_passes_and_another_says_why_not() -> None:
    require_ready(cast("Sandbox", AnySandbox(SandboxState.READY)))
    with pytest.raises(WrongStateError, match="sandbox 12ab is not ready: it is still being"):
        require_ready(cast("Sandbox", AnySandbox(SandboxState.NOT_READY)))
    with pytest.raises(WrongStateError, match="not ready: the node was rebooted"):
        require_ready(cast("Sandbox", AnySandbox(SandboxState.NOT_READY, "the node was rebooted")))


@pytest.mark.asyncio
async def test_a_name_that_is_going_names_its_holder_and_what_is_done_to_it() -> None:
    operations = Operations()
    holder = "5" * 64
    with operations.begin("RemovePodSandbox", holder), step("killing the cgroup"):
        error = name_is_going("sandbox", "web", holder, operations)
    assert isinstance(error, UnavailableError)
    assert str(error).startswith(f"sandbox name web is held by sandbox {holder}, which is being")
    assert "killing the cgroup" in str(error)
