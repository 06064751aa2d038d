"""Builds CRI messages of containers. Pure, except that a container keeps its encoded list entry."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.rpc.encoded import kept
from cri_shim.rpc.translate_pods import has_labels
from cri_shim.sandbox.container_resources import resources_in_force
from cri_shim.sandbox.store.model import ContainerState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cri_shim.sandbox.store.model import ContainerMetadata
    from cri_shim.sandbox.store.store import Container

STATES: Final = {
    # Lists and find leave out a container that is being created. The row keeps the mapping total.
    ContainerState.CREATING: api.CONTAINER_UNKNOWN,
    ContainerState.CREATED: api.CONTAINER_CREATED,
    ContainerState.RUNNING: api.CONTAINER_RUNNING,
    ContainerState.EXITED: api.CONTAINER_EXITED,
}
_FIRST_REAL_TIME_SIGNAL: Final = 34
_LAST_SIGNAL: Final = 64
"""Between glibc's SIGRTMIN and SIGRTMAX the numbers of CRI's Signal enum are consecutive."""


def list_entry(container: Container) -> bytes:
    """An encoded ListContainersResponse with this container alone; StreamContainersResponse has the same encoding."""
    return kept(container, _encoded_entry)


def _encoded_entry(container: Container) -> bytes:
    return api.ListContainersResponse(containers=[container_entry(container)]).SerializeToString()


def container_entry(container: Container) -> api.Container:
    """The entry of a container in ListContainersResponse."""
    record, config = container.record, container.config
    return api.Container(
        id=record.id,
        pod_sandbox_id=record.sandbox_id,
        metadata=metadata(record.metadata),
        image=config.image,
        image_ref=record.image_ref,
        image_id=record.image_id,
        state=STATES[container.status.state],
        created_at=record.created_at_ns,
        labels=config.labels,
        annotations=config.annotations,
    )


def container_status(container: Container) -> api.ContainerStatus:
    """The status of a container in ContainerStatusResponse."""
    record, config, status = container.record, container.config, container.status
    message = api.ContainerStatus(
        id=record.id,
        metadata=metadata(record.metadata),
        state=STATES[status.state],
        created_at=record.created_at_ns,
        started_at=status.started_at_ns,
        finished_at=status.finished_at_ns,
        exit_code=status.exit_code,
        image=_image_shown(container),
        image_ref=record.image_ref,
        image_id=record.image_id,
        reason=status.reason,
        message=status.message,
        labels=config.labels,
        annotations=config.annotations,
        mounts=config.mounts,
        log_path=record.log_path,
        stop_signal=stop_signal(record.stop_signal),
    )
    resources = resources_in_force(container)
    if config.linux.HasField("resources") or resources.ListFields():
        message.resources.linux.CopyFrom(resources)
    for volume in record.image_volumes:
        # Kubelet's image garbage collection compares these with the IDs of ListImages, and removes images that no
        # container refers to.
        shown = message.mounts[volume.index].image
        shown.image = shown.image_ref = volume.image_id
    if status.user is not None:
        user = message.user.linux
        user.uid, user.gid = status.user.uid, status.user.gid
        user.supplemental_groups.extend(status.user.groups)
    return message


def _image_shown(container: Container) -> api.ImageSpec:
    """The request's image, by its name if it has one: kubelet requests an ID, and shows users what is here."""
    spec = api.ImageSpec()
    spec.CopyFrom(container.config.image)
    spec.image = container.record.image_name or spec.image
    return spec


def metadata(of: ContainerMetadata) -> api.ContainerMetadata:
    """A container's metadata as a CRI message."""
    return api.ContainerMetadata(name=of.name, attempt=of.attempt)


def stop_signal(number: int) -> api.Signal.ValueType:
    """CRI's enum value of a signal, or SIGNAL_RUNTIME_DEFAULT for a number without one."""
    if _FIRST_REAL_TIME_SIGNAL <= number <= _LAST_SIGNAL:
        return api.Signal.Value(
            api.Signal.Name(api.SIGNAL_SIGRTMIN + number - _FIRST_REAL_TIME_SIGNAL)  # type: ignore[arg-type]
        )
    try:
        return api.Signal.Value(f"SIGNAL_{signal.Signals(number).name}")
    except ValueError:
        return api.SIGNAL_RUNTIME_DEFAULT


def selected(
    containers: Sequence[Container],
    filter_: api.ContainerFilter | api.ContainerStatsFilter,
) -> Sequence[Container]:
    """The containers that match every condition of the filter. Its container ID and sandbox ID may be prefixes."""
    chosen = containers
    if prefix := filter_.id:
        chosen = [each for each in chosen if each.record.id.startswith(prefix)]
    if prefix := filter_.pod_sandbox_id:
        chosen = [each for each in chosen if each.record.sandbox_id.startswith(prefix)]
    if isinstance(filter_, api.ContainerFilter) and filter_.HasField("state"):
        state = filter_.state.state
        chosen = [each for each in chosen if STATES[each.status.state] == state]
    if labels := dict(filter_.label_selector):
        chosen = [each for each in chosen if has_labels(each.config.labels, labels)]
    return chosen
