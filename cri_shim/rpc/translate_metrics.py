"""Builds CRI's metrics of pods, encoded. Pure.

Rules:
- Each sample repeats its metric's name and kind and the labels of its pod or container, and a node has ten thousands of
  samples. So these parts are encoded once, and a sample is their concatenation (`encoded` says why that is allowed).
- Every metric has the same five labels first; those of a pod itself have the container `POD` and no image, as
  dashboards of cAdvisor's metrics expect.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING, Final

from cri_shim._pb.cri.v1 import api_pb2 as api

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cri_shim.sandbox.cri_metrics.families import Family, ReadingT
    from cri_shim.sandbox.cri_metrics.readings import ContainerReading, PodReading
    from cri_shim.sandbox.store.model import PodMetadata

BASE_LABELS: Final = ("id", "image", "namespace", "pod", "container")
_OF_THE_POD: Final = "POD"
_METRICS_TAG: Final = b"\x12"
"""Of the field `metrics`, in PodSandboxMetrics and in ContainerMetrics: number 2, length-delimited."""
_CONTAINERS_TAG: Final = b"\x1a"
_PODS_TAG: Final = b"\x0a"
"""Of ListPodSandboxMetricsResponse and StreamPodSandboxMetricsResponse."""
_WRAPPER_TAG: Final = b"\x2a"
"""Of Metric.value, and then of UInt64Value.value."""
_VALUE_TAG: Final = b"\x08"
_MORE: Final = 0x80
_MAX_UINT64: Final = (1 << 64) - 1
_KEPT_LABELS: Final = 1024


def descriptor(family: Family[PodReading] | Family[ContainerReading]) -> api.MetricDescriptor:
    """A metric's entry in ListMetricDescriptorsResponse."""
    return api.MetricDescriptor(
        name=family.name, help=family.help, label_keys=[*BASE_LABELS, *family.labels]
    )


def pod_entry(
    reading: PodReading,
    pod_families: Sequence[Family[PodReading]],
    container_families: Sequence[Family[ContainerReading]],
) -> bytes:
    """An encoded ListPodSandboxMetricsResponse with this pod alone; the streamed response has the same encoding."""
    sandbox, of = reading.sandbox, reading.sandbox.record.metadata
    common = _common(reading.read_at_ns, sandbox.id, "", of.namespace, of.name, _OF_THE_POD)
    parts = [api.PodSandboxMetrics(pod_sandbox_id=sandbox.id).SerializeToString()]
    parts += _metrics(reading, pod_families, common)
    for container in reading.containers:
        parts.append(_field(_CONTAINERS_TAG, _container(container, of, container_families)))
    return _field(_PODS_TAG, b"".join(parts))


def _container(
    reading: ContainerReading, pod: PodMetadata, families: Sequence[Family[ContainerReading]]
) -> bytes:
    record = reading.container.record
    image = record.image_name or record.image_ref
    common = _common(
        reading.usage.read_at_ns, record.id, image, pod.namespace, pod.name, record.metadata.name
    )
    parts = [api.ContainerMetrics(container_id=record.id).SerializeToString()]
    parts += _metrics(reading, families, common)
    return b"".join(parts)


def _metrics(
    reading: ReadingT, families: Sequence[Family[ReadingT]], common: bytes
) -> Iterator[bytes]:
    for family in families:
        head = _head(family.name, str(family.kind)) + common
        for value, labels in family.samples(reading):
            yield _field(_METRICS_TAG, head + _labels(labels) + _value(value))


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + _varint(len(content)) + content


@cache
def _head(name: str, kind: str) -> bytes:
    kind_number = api.MetricType.Value(kind)
    return api.Metric(name=name, metric_type=kind_number).SerializeToString()


def _common(read_at_ns: int, *labels: str) -> bytes:
    return api.Metric(timestamp=read_at_ns, label_values=labels).SerializeToString()


@lru_cache(maxsize=_KEPT_LABELS)
def _labels(labels: tuple[str, ...]) -> bytes:
    return api.Metric(label_values=labels).SerializeToString() if labels else b""


def _value(value: int) -> bytes:
    """Metric.value: a message, present also for 0."""
    number = min(max(value, 0), _MAX_UINT64)
    content = _VALUE_TAG + _varint(number) if number else b""
    return _WRAPPER_TAG + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """Protobuf's encoding of an unsigned number: seven bits in a byte, the least first."""
    if number < _MORE:
        return bytes((number,))
    found = bytearray()
    while number >= _MORE:
        found.append(number & (_MORE - 1) | _MORE)
        number >>= 7
    found.append(number)
    return bytes(found)
