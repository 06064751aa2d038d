"""The record of one gRPC call, for its log line and metrics: method, request ID, objects concerned, outcome.

Log levels:
- INFO: a successful call that changes something, and a call that its client cancelled.
- DEBUG: a successful call that only reads, and ExecSync. Kubelet makes several of these a second.
- WARNING: a failed call. ERROR where the code says that the fault is cri-shim's (INTERNAL, DATA_LOSS, UNKNOWN).
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final

import grpc

from cri_shim import metrics
from cri_shim.quoting import bounded_text

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from prometheus_client import Counter, Histogram

_QUIET_PREFIXES: Final = ("List", "Stream", "Get")
_QUIET_SUFFIXES: Final = ("Status", "Stats", "Info", "Reflection")
_QUIET_NAMES: Final = frozenset(
    {"Version", "Operations", "RuntimeConfig", "ExecSync", "Check", "Watch"}
)
_ABOUT_THE_SERVER: Final = ("grpc.health.", "grpc.reflection.")
_ALWAYS_ANSWERED: Final = frozenset({"Version", "Operations", "GetContainerEvents"})
"""A stream of events has no end that a stop could wait for, and waits for the end of recovery itself."""
_OURS: Final = frozenset(
    {grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNKNOWN}
)
MAX_SUBJECT_CHARS: Final = 300
"""The longest ID or name in a log line."""
_ID_FIELDS: Final = {
    "pod_sandbox_id": "sandbox_id",
    "container_id": "container_id",
    "id": "id",
}


@dataclass(frozen=True)
class MethodName:
    """A method as metrics and logs name it. What follows from the name is computed once per method."""

    service: str
    method: str

    @classmethod
    def parse(cls, path: str) -> MethodName:
        """Parse gRPC's path `/package.Service/Method`."""
        service, _, method = path.removeprefix("/").partition("/")
        return cls(service, method)

    @cached_property
    def is_cri(self) -> bool:
        """Whether the method belongs to CRI, of either API version."""
        return self.service.startswith("runtime.")

    @cached_property
    def is_cri_v1(self) -> bool:
        """Whether the method belongs to `runtime.v1`, the API of every supported kubelet."""
        return self.service.startswith("runtime.v1.")

    @cached_property
    def is_about_the_server(self) -> bool:
        """Whether the method is served during recovery and while the server stops."""
        return self.service.startswith(_ABOUT_THE_SERVER) or self.method in _ALWAYS_ANSWERED

    @cached_property
    def is_read_only(self) -> bool:
        """Whether the method changes nothing. ExecSync is quiet in the log, but runs a command."""
        return self.is_quiet and self.method != "ExecSync"

    @cached_property
    def seconds_of_calls(self) -> Histogram:
        """The histogram of the method's durations."""
        return metrics.GRPC_REQUEST_SECONDS.labels(self.service, self.method)

    @cached_property
    def calls_by_code(self) -> dict[grpc.StatusCode, Counter]:
        """A cache of the method's counters. `labels()` of prometheus-client takes a lock and builds a key each time."""
        return {}

    @cached_property
    def is_quiet(self) -> bool:
        """Whether successful calls are logged at DEBUG."""
        return (
            self.method in _QUIET_NAMES
            or self.method.startswith(_QUIET_PREFIXES)
            or self.method.endswith(_QUIET_SUFFIXES)
        )


@dataclass(slots=True)
class Call:
    """One call under way."""

    name: MethodName
    id: str = field(default_factory=lambda: secrets.token_hex(6))
    code: grpc.StatusCode = grpc.StatusCode.OK
    text: str = ""
    messages: list[Message] = field(default_factory=list)
    """The request and the response. `subject` searches them for IDs only if the log line is written."""
    started_s: float = field(default_factory=time.perf_counter)

    @property
    def subject(self) -> dict[str, str]:
        """IDs and names of the objects concerned, as the log line shows them."""
        return {
            key: bounded_text(text, MAX_SUBJECT_CHARS)
            for message in self.messages
            for key, text in subject_of(message).items()
        }

    @property
    def level(self) -> str:
        """The level of the call's log line."""
        if self.code is grpc.StatusCode.OK:
            return "debug" if self.name.is_quiet else "info"
        if self.code is grpc.StatusCode.CANCELLED:
            return "info"
        return "error" if self.code in _OURS else "warning"

    @property
    def seconds(self) -> float:
        """Seconds since the call arrived."""
        return time.perf_counter() - self.started_s

    def count(self, seconds: float) -> None:
        """Count the call, which took `seconds`, in the metrics."""
        counted = self.name.calls_by_code.get(self.code)
        if counted is None:
            counted = metrics.GRPC_REQUESTS.labels(
                self.name.service, self.name.method, self.code.name
            )
            self.name.calls_by_code[self.code] = counted
        counted.inc()
        self.name.seconds_of_calls.observe(seconds)


def subject_of(message: Message) -> dict[str, str]:
    """IDs and names in a request or response, by log key: `sandbox_id`, `container_id`, `pod`, `container`, `image`."""
    found: dict[str, str] = {}
    fields = message.DESCRIPTOR.fields_by_name
    for name, key in _ID_FIELDS.items():
        if name in fields and (value := getattr(message, name)):
            found[key] = value
    if "config" in fields and message.HasField("config"):
        found.update(_subject_of_config(message.config))  # type: ignore[attr-defined]
    if "image" in fields and fields["image"].message_type and message.HasField("image"):
        image: Message = message.image  # type: ignore[attr-defined]
        if name := getattr(image, "image", ""):
            found["image"] = name
    return found


def _subject_of_config(config: Message) -> dict[str, str]:
    metadata = getattr(config, "metadata", None)
    if metadata is None:
        return {}
    namespace = getattr(metadata, "namespace", None)
    return (
        {"pod": f"{namespace}/{metadata.name}"}
        if namespace is not None
        else {"container": metadata.name}
    )
