"""A pod's user namespace: made before everything that belongs to it, and found again at its pause process.

Rules:
- Nothing pins it. While a pod is made a descriptor of ours holds it, afterwards the pause process does; the pod's
  network namespace, made inside it, is pinned as every pod's.
- Files that the pod's root may change are given to whom that root is on the node.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.errors import WrongStateError, host_step
from cri_shim.host.files import fd_path
from cri_shim.oci.spec.namespaces import user_mappings
from cri_shim.sandbox.store.processes import running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from cri_shim.host.port import Host
    from cri_shim.host.process import Reaper
    from cri_shim.oci.spec.inputs import UserMappings
    from cri_shim.sandbox.store.store import Sandbox


@dataclass(frozen=True, slots=True)
class PodUserNamespace:
    """A pod's user namespace, held open."""

    fd: int
    root: tuple[int, int]
    """User and group, on the node, of the namespace's root."""
    netns_fd: int | None = None
    """While the pod is made: the network namespace that belongs to it."""

    @property
    def path(self) -> str:
        """What an OCI runtime can open while it is held."""
        return fd_path(self.fd)


def mappings_of(sandbox: Sandbox) -> UserMappings | None:
    """The mappings of the pod's own user namespace; None where it has the node's."""
    return user_mappings(sandbox.config.linux.security_context.namespace_options)


def root_of(sandbox: Sandbox) -> tuple[int, int] | None:
    """User and group, on the node, of the pod's root; None where it is the node's root."""
    users = mappings_of(sandbox)
    return None if users is None else (users.uids.host_id, users.gids.host_id)


@contextlib.asynccontextmanager
async def new_pod_userns(
    host: Host, sandbox: Sandbox, reaper: Reaper, *, with_network: bool
) -> AsyncIterator[PodUserNamespace | None]:
    """The user namespace of a sandbox that is being made; None where it has the node's.

    Raises CommandError with the kernel's words, DeadlineError.
    """
    users = mappings_of(sandbox)
    if users is None:
        yield None
        return
    async with host.new_user_namespace(
        reaper,
        uid_map=users.uids.proc_text,
        gid_map=users.gids.proc_text,
        with_network=with_network,
    ) as made:
        yield PodUserNamespace(made.fd, (users.uids.host_id, users.gids.host_id), made.netns_fd)


@contextlib.contextmanager
def user_namespace_of(host: Host, sandbox: Sandbox) -> Iterator[PodUserNamespace | None]:
    """The user namespace of a ready sandbox; None where it has the node's.

    Raises WrongStateError when its pause process is gone.
    """
    root = root_of(sandbox)
    if root is None:
        yield None
        return
    process = sandbox.status.process
    with host_step(f"sandbox {sandbox.id}: entering its user namespace"):
        fd = None if process is None else host.open_user_namespace(process.pid)
    try:
        # The look comes after the open: what the descriptor holds can't change any more.
        if fd is None or not running(host, process):
            raise WrongStateError(f"sandbox {sandbox.id} is not ready: its pause process is gone")
        yield PodUserNamespace(fd, root)
    finally:
        if fd is not None:
            os.close(fd)
