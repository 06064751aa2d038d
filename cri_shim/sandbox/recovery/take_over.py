"""What a shim runs, taken over from a former daemon: its end is waited for, and its streams are held."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cri_shim.background import until_done
from cri_shim.errors import NotFoundError, UnavailableError
from cri_shim.oci.shim.requests import TaskPlan

if TYPE_CHECKING:
    from cri_shim.oci.shim.runtime import ShimRuntime
    from cri_shim.paths import Paths
    from cri_shim.sandbox.store.store import Container

log = structlog.get_logger()


def plan_of(container: Container, paths: Paths) -> TaskPlan:
    """The container as its shim knows it."""
    config, log_path = container.config, container.record.log_path
    return TaskPlan(
        container.id,
        container.sandbox_id,
        paths.container(container.id).bundle_dir,
        Path(log_path) if log_path else None,
        terminal=config.tty,
        stdin=config.stdin,
        stdin_once=config.stdin_once,
    )


async def take_over(plan: TaskPlan, runtime: ShimRuntime) -> None:
    """Take over a container, or a pod's pause container; tried again until that is done or the shim is gone."""

    async def adopt() -> None:
        try:
            await runtime.adopt(plan)
        except (UnavailableError, NotFoundError) as error:
            # A shim that is dead is seen as that by the exit watch.
            log.warning("shim not reached", id=plan.object_id, error=str(error))

    await until_done(f"taking over {plan.object_id}", adopt)
