"""Sandboxes as CRI messages. Pure.

Entries of ListPodSandbox are kept per sandbox for as long as its status is the same object, so that a list is an
extend: kubelet asks for it every second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.sandbox.model import SandboxState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from cri_shim.sandbox.model import PodMetadata, SandboxStatus
    from cri_shim.sandbox.store import Sandbox

STATES: Final = {
    # A sandbox that is still being created is not shown; should it be, it is not ready.
    SandboxState.CREATING: api.SANDBOX_NOTREADY,
    SandboxState.READY: api.SANDBOX_READY,
    SandboxState.NOT_READY: api.SANDBOX_NOTREADY,
}

_entries: WeakKeyDictionary[Sandbox, tuple[SandboxStatus, api.PodSandbox]] = WeakKeyDictionary()


def pod_sandbox(sandbox: Sandbox) -> api.PodSandbox:
    """The entry of ListPodSandbox. The message is shared: callers must not change it."""
    kept = _entries.get(sandbox)
    if kept is not None and kept[0] is sandbox.status:
        return kept[1]
    record, config = sandbox.record, sandbox.config
    entry = api.PodSandbox(
        id=record.id,
        metadata=metadata(record.metadata),
        state=STATES[sandbox.status.state],
        created_at=record.created_at_ns,
        labels=config.labels,
        annotations=config.annotations,
        runtime_handler=record.handler,
    )
    _entries[sandbox] = (sandbox.status, entry)
    return entry


def pod_sandbox_status(sandbox: Sandbox) -> api.PodSandboxStatus:
    """What PodSandboxStatus tells about a sandbox."""
    record, config, status = sandbox.record, sandbox.config, sandbox.status
    return api.PodSandboxStatus(
        id=record.id,
        metadata=metadata(record.metadata),
        state=STATES[status.state],
        created_at=record.created_at_ns,
        network=_network(status),
        linux=api.LinuxPodSandboxStatus(
            namespaces=api.Namespace(options=config.linux.security_context.namespace_options)
        ),
        labels=config.labels,
        annotations=config.annotations,
        runtime_handler=record.handler,
    )


def metadata(of: PodMetadata) -> api.PodSandboxMetadata:
    """CRI's form of a pod's metadata."""
    return api.PodSandboxMetadata(
        name=of.name, uid=of.uid, namespace=of.namespace, attempt=of.attempt
    )


def selected(sandboxes: Iterable[Sandbox], filter_: api.PodSandboxFilter) -> Iterator[Sandbox]:
    """Those that meet every condition of the filter; `id` may be the beginning of one."""
    state = filter_.state.state if filter_.HasField("state") else None
    for sandbox in sandboxes:
        if (
            sandbox.record.id.startswith(filter_.id)
            and state in (None, STATES[sandbox.status.state])
            and has_labels(sandbox.config.labels, filter_.label_selector)
        ):
            yield sandbox


def has_labels(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether each label of the selector is there with the same value."""
    return all(labels.get(key) == value for key, value in selector.items())


def _network(status: SandboxStatus) -> api.PodSandboxNetworkStatus:
    """No address once the network is taken down: it may belong to another pod by now."""
    if not status.ips or status.torn_down:
        return api.PodSandboxNetworkStatus()
    first, *others = status.ips
    return api.PodSandboxNetworkStatus(ip=first, additional_ips=[api.PodIP(ip=ip) for ip in others])
