"""Builds the rows and the JSON document of `cri-shim status`. Pure.

Rules:
- Containers are listed below their pod.
- An object that is being created is not in CRI's lists. A row in state `creating` is built from its operation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import msgspec

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.cli.output import short_id
from cri_shim.cli.progress import size_text
from cri_shim.operations import duration_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from cri_shim._pb.admin.v1 import admin_pb2 as admin
    from cri_shim.cli.status_reading import Sight

STATES: Final = {
    api.CONTAINER_CREATED: "created",
    api.CONTAINER_RUNNING: "running",
    api.CONTAINER_EXITED: "exited",
    api.CONTAINER_UNKNOWN: "unknown",
}
N = TypeVar("N")


class PodName(NamedTuple):
    """A sandbox's reserved name."""

    name: str
    namespace: str
    uid: str
    attempt: int


class ContainerName(NamedTuple):
    """A container's reserved name."""

    sandbox_id: str
    name: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Row:
    """A pod or a container."""

    name: str
    id: str
    state: str
    is_pod: bool
    restarts: int
    age_s: float
    operations: Sequence[admin.Operation] = ()
    cpu_nano_cores: int | None = None
    memory_bytes: int | None = None

    def cells(self) -> tuple[str, ...]:
        """The cells of the table row."""
        return (
            self.name if self.is_pod else f"  {self.name}",
            short_id(self.id),
            self.state,
            "-" if self.cpu_nano_cores is None else f"{self.cpu_nano_cores / 1e7:.1f}%",
            "-" if self.memory_bytes is None else size_text(self.memory_bytes),
            str(self.restarts),
            duration_text(self.age_s),
            ", ".join(map(waiting_text, self.operations)) or "-",
        )

    def document(self) -> dict[str, object]:
        """The row as a JSON document."""
        return {
            "id": self.id,
            "name": self.name,
            "state": self.state,
            "restarts": self.restarts,
            "ageSeconds": round(self.age_s, 3),
            "cpuNanoCores": self.cpu_nano_cores,
            "memoryBytes": self.memory_bytes,
            "operations": list(map(operation_document, self.operations)),
        }


def rows_of(sight: Sight) -> list[Row]:
    """All pods, oldest first, each followed by its containers."""
    return [row for pod, containers in _pods(sight) for row in (pod, *containers)]


def document_of(sight: Sight) -> dict[str, object]:
    """The whole status as a JSON document."""
    pods = [
        pod.document() | {"containers": [row.document() for row in containers]}
        for pod, containers in _pods(sight)
    ]
    document: dict[str, object] = {
        "pods": pods,
        "operations": list(map(operation_document, _unplaced(sight))),
    }
    return document | ({"trouble": sight.trouble} if sight.trouble else {})


def others(sight: Sight) -> list[str]:
    """Operations that concern no row, as text."""
    return [f"{_subject(each)}: {waiting_text(each)}" for each in _unplaced(sight)]


def waiting_text(operation: admin.Operation) -> str:
    """`StopPodSandbox: cni DEL bridge (12 s)`; with several steps if they run in parallel."""
    steps = [f"{each.step} ({duration_text(each.seconds)})" for each in operation.steps]
    return f"{operation.operation}: {' and '.join(steps)}"


def operation_document(operation: admin.Operation) -> dict[str, object]:
    """An operation as a JSON document."""
    return {
        "operation": operation.operation,
        "object": operation.object,
        "subject": operation.subject,
        "forSeconds": round(operation.seconds, 3),
        "steps": [
            {"step": each.step, "forSeconds": round(each.seconds, 3)} for each in operation.steps
        ],
    }


def _pods(sight: Sight) -> Iterator[tuple[Row, list[Row]]]:
    of_pod: dict[str, list[Row]] = {}
    for container in sorted(sight.containers, key=lambda each: each.created_at):
        of_pod.setdefault(container.pod_sandbox_id, []).append(_container(sight, container))
    for pod in sorted(sight.pods, key=lambda each: each.created_at):
        containers = of_pod.get(pod.id, [])
        containers += [
            Row(name, each.object, "creating", False, attempt, each.seconds, [each])
            for each, (sandbox_id, name, attempt) in _in_the_making(
                sight, "CreateContainer", ContainerName
            )
            if sandbox_id == pod.id
        ]
        cpu = [row.cpu_nano_cores for row in containers if row.cpu_nano_cores is not None]
        memory = [row.memory_bytes for row in containers if row.memory_bytes is not None]
        row = Row(
            name=f"{pod.metadata.namespace}/{pod.metadata.name}",
            id=pod.id,
            state="ready" if pod.state == api.SANDBOX_READY else "notready",
            is_pod=True,
            restarts=pod.metadata.attempt,
            age_s=_age_s(sight, pod.created_at),
            operations=_operations_of(sight, pod.id),
            cpu_nano_cores=sum(cpu) if cpu else None,
            memory_bytes=sum(memory) if memory else None,
        )
        yield row, containers
    for each, (name, namespace, _, attempt) in _in_the_making(sight, "RunPodSandbox", PodName):
        pod_name = f"{namespace}/{name}"
        yield Row(pod_name, each.object, "creating", True, attempt, each.seconds, [each]), []


def _container(sight: Sight, container: api.Container) -> Row:
    stats = sight.stats.get(container.id)
    cpu = memory = None
    if stats is not None and container.state == api.CONTAINER_RUNNING:
        if stats.cpu.HasField("usage_nano_cores"):
            cpu = stats.cpu.usage_nano_cores.value
        if stats.memory.HasField("working_set_bytes"):
            memory = stats.memory.working_set_bytes.value
    return Row(
        name=container.metadata.name,
        id=container.id,
        state=STATES.get(container.state, "unknown"),
        is_pod=False,
        restarts=container.metadata.attempt,
        age_s=_age_s(sight, container.created_at),
        operations=_operations_of(sight, container.id),
        cpu_nano_cores=cpu,
        memory_bytes=memory,
    )


def _operations_of(sight: Sight, object_id: str) -> list[admin.Operation]:
    return [each for each in sight.operations if each.object == object_id]


def _in_the_making(
    sight: Sight, operation: str, name_type: type[N]
) -> Iterator[tuple[admin.Operation, N]]:
    """Operations that create an object that no list has yet, with its reserved name."""
    listed = {pod.id for pod in sight.pods} | {container.id for container in sight.containers}
    for each in sight.operations:
        if each.operation == operation and each.object not in listed:
            try:
                yield each, msgspec.json.decode(each.subject, type=name_type)
            except msgspec.MsgspecError:
                continue


def _unplaced(sight: Sight) -> Iterable[admin.Operation]:
    shown = {id(each) for row in rows_of(sight) for each in row.operations}
    return [each for each in sight.operations if id(each) not in shown]


def _subject(operation: admin.Operation) -> str:
    try:
        return "/".join(map(str, msgspec.json.decode(operation.subject, type=list[str | int])))
    except msgspec.MsgspecError:
        return operation.subject


def _age_s(sight: Sight, created_at_ns: int) -> float:
    return max(sight.at_ns - created_at_ns, 0) / 1e9
