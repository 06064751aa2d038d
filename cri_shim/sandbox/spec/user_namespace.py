"""A pod's user namespace: creates it before the pod's other resources, and opens it later through the pause process.

Rules:
- It is not pinned. During the pod's creation a descriptor keeps it alive, afterwards the pause process does. The pod's
  network namespace is created inside it, and pinned as that of every pod.
- Files that the pod's root may write are owned by the user and group to which that root is mapped on the node.
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
    """User and group on the node to which the namespace's root is mapped."""
    netns_fd: int | None = None
    """The network namespace that was created with it, during the pod's creation."""

    @property
    def path(self) -> str:
        """A path that an OCI runtime can open while the descriptor is open."""
        return fd_path(self.fd)


def mappings_of(sandbox: Sandbox) -> UserMappings | None:
    """The mappings of the pod's own user namespace, or None if it uses the node's."""
    return user_mappings(sandbox.config.linux.security_context.namespace_options)


def root_of(sandbox: Sandbox) -> tuple[int, int] | None:
    """User and group on the node of the pod's root, or None if the pod uses the node's user namespace."""
    users = mappings_of(sandbox)
    return None if users is None else (users.uids.host_id, users.gids.host_id)


@contextlib.asynccontextmanager
async def new_pod_userns(
    host: Host, sandbox: Sandbox, reaper: Reaper, *, with_network: bool
) -> AsyncIterator[PodUserNamespace | None]:
    """Create the user namespace of a new sandbox. None if the pod uses the node's.

    Raises CommandError with the kernel's error, DeadlineError.
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
    """Open the user namespace of a ready sandbox. None if the pod uses the node's.

    Raises WrongStateError if the pause process has ended.
    """
    root = root_of(sandbox)
    if root is None:
        yield None
        return
    process = sandbox.status.process
    with host_step(f"sandbox {sandbox.id}: opening the user namespace"):
        fd = None if process is None else host.open_user_namespace(process.pid)
    try:
        # Check the process after the open: if it still runs, the pid was not reused before.
        if fd is None or not running(host, process):
            raise WrongStateError(f"sandbox {sandbox.id} is not ready: its pause process has ended")
        yield PodUserNamespace(fd, root)
    finally:
        if fd is not None:
            os.close(fd)
