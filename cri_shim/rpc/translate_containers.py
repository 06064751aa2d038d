"""Containers and their usage as CRI messages. Pure, but that a container keeps its encoded entry as sandboxes do."""

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

    from google.protobuf.message import Message

    from cri_shim.host.cgroups.usage import CgroupStats
    from cri_shim.sandbox.stats import ContainerUsage
    from cri_shim.sandbox.store.model import ContainerMetadata
    from cri_shim.sandbox.store.store import Container

STATES: Final = {
    # A container that is still being created is not shown; should it be, nothing is known of it.
    ContainerState.CREATING: api.CONTAINER_UNKNOWN,
    ContainerState.CREATED: api.CONTAINER_CREATED,
    ContainerState.RUNNING: api.CONTAINER_RUNNING,
    ContainerState.EXITED: api.CONTAINER_EXITED,
}
_FIRST_REAL_TIME_SIGNAL: Final = 34
_LAST_SIGNAL: Final = 64
"""From glibc's SIGRTMIN up to SIGRTMAX, CRI's enum counts on without gaps."""


def list_entry(container: Container) -> bytes:
    """A ListContainersResponse of this container alone, encoded; a StreamContainersResponse is the same on the wire."""
    return kept(container, _encoded_entry)


def _encoded_entry(container: Container) -> bytes:
    return api.ListContainersResponse(containers=[container_entry(container)]).SerializeToString()


def container_entry(container: Container) -> api.Container:
    """What ListContainers tells about a container."""
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
    """What ContainerStatus tells about a container."""
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
        # A kubelet's garbage collection looks for the IDs of ListImages here: what it doesn't find, it removes.
        shown = message.mounts[volume.index].image
        shown.image = shown.image_ref = volume.image_id
    if status.user is not None:
        user = message.user.linux
        user.uid, user.gid = status.user.uid, status.user.gid
        user.supplemental_groups.extend(status.user.groups)
    return message


def _image_shown(container: Container) -> api.ImageSpec:
    """The request's image under its name: kubelets ask for an ID, and show their users what stands here."""
    spec = api.ImageSpec()
    spec.CopyFrom(container.config.image)
    spec.image = container.record.image_name or spec.image
    return spec


def container_stats(usage: ContainerUsage, *, mountpoint: str) -> api.ContainerStats:
    """What ContainerStats tells about a container; what this node doesn't account stays unset.

    `mountpoint` stands for the file system of all writable layers, as in ImageFsInfo's answer: kubelet asks the
    kernel about each one it has not seen.
    """
    record, config = usage.container.record, usage.container.config
    message = api.ContainerStats(
        attributes=api.ContainerAttributes(
            id=record.id,
            metadata=metadata(record.metadata),
            labels=config.labels,
            annotations=config.annotations,
        )
    )
    if usage.cgroup is not None:
        _set_cgroup(message, usage.cgroup, usage.cpu_nano_cores)
    layer = message.writable_layer
    layer.timestamp = usage.layer_read_at_ns
    layer.fs_id.mountpoint = mountpoint
    _set(layer, used_bytes=usage.layer_bytes, inodes_used=usage.layer_inodes)
    return message


def metadata(of: ContainerMetadata) -> api.ContainerMetadata:
    """CRI's form of a container's metadata."""
    return api.ContainerMetadata(name=of.name, attempt=of.attempt)


def stop_signal(number: int) -> api.Signal.ValueType:
    """CRI's name of a signal; the runtime's default for a number that CRI has no name for."""
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
    """Those that meet every condition of the filter; both IDs in it may be beginnings."""
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


def _set_cgroup(message: api.ContainerStats, cgroup: CgroupStats, nano_cores: int | None) -> None:
    message.cpu.timestamp = message.memory.timestamp = cgroup.read_at_ns
    _set(
        message.cpu,
        usage_core_nano_seconds=cgroup.cpu_usage_ns,
        usage_nano_cores=nano_cores,
    )
    _set(
        message.memory,
        working_set_bytes=cgroup.working_set_bytes,
        available_bytes=cgroup.memory_available_bytes,
        usage_bytes=cgroup.memory_usage_bytes,
        rss_bytes=cgroup.rss_bytes,
        page_faults=cgroup.page_faults,
        major_page_faults=cgroup.major_page_faults,
    )
    if cgroup.swap_usage_bytes is not None:
        message.swap.timestamp = cgroup.read_at_ns
        _set(message.swap, swap_usage_bytes=cgroup.swap_usage_bytes)


def _set(message: Message, **values: int | None) -> None:
    """Set those UInt64Value fields whose values are known; 0 is known too."""
    for name, value in values.items():
        if value is not None:
            wrapper = getattr(message, name)
            wrapper.SetInParent()
            wrapper.value = value
