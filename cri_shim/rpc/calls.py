"""What is noted about one call: its names, its id, the objects it is about, how it ended.

Log levels: a success that changes something is INFO; what kubelet and probes ask all day long is DEBUG; a failure is
WARNING, or ERROR where the fault is ours; a client that went away is INFO.
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
_ALWAYS_ANSWERED: Final = frozenset({"Version", "Operations"})
_OURS: Final = frozenset(
    {grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNKNOWN}
)
MAX_SUBJECT_CHARS: Final = 300
"""Of an ID or a name in a log line."""
_ID_FIELDS: Final = {
    "pod_sandbox_id": "sandbox_id",
    "container_id": "container_id",
    "id": "id",
}


@dataclass(frozen=True)
class MethodName:
    """A method as metrics and logs name it, and what follows from its name: found out once."""

    service: str
    method: str

    @classmethod
    def parse(cls, path: str) -> MethodName:
        """From gRPC's `/package.Service/Method`."""
        service, _, method = path.removeprefix("/").partition("/")
        return cls(service, method)

    @cached_property
    def is_cri(self) -> bool:
        """Whether it belongs to CRI, of either version."""
        return self.service.startswith("runtime.")

    @cached_property
    def is_cri_v1(self) -> bool:
        """Whether it belongs to the API that kubelet speaks today."""
        return self.service.startswith("runtime.v1.")

    @cached_property
    def is_about_the_server(self) -> bool:
        """Whether it is answered before recovery is done and while the server stops."""
        return self.service.startswith(_ABOUT_THE_SERVER) or self.method in _ALWAYS_ANSWERED

    @cached_property
    def is_read_only(self) -> bool:
        """Whether it changes nothing."""
        return self.is_quiet and self.method != "ExecSync"

    @cached_property
    def seconds_of_calls(self) -> Histogram:
        """How long its calls took."""
        return metrics.GRPC_REQUEST_SECONDS.labels(self.service, self.method)

    @cached_property
    def calls_by_code(self) -> dict[grpc.StatusCode, Counter]:
        """How many calls ended with each of the codes that there were."""
        return {}

    @cached_property
    def is_quiet(self) -> bool:
        """Whether its successes are noise in a log."""
        return (
            self.method in _QUIET_NAMES
            or self.method.startswith(_QUIET_PREFIXES)
            or self.method.endswith(_QUIET_SUFFIXES)
        )


@dataclass(slots=True)
class Call:
    """One call while it runs."""

    name: MethodName
    id: str = field(default_factory=lambda: secrets.token_hex(6))
    code: grpc.StatusCode = grpc.StatusCode.OK
    text: str = ""
    messages: list[Message] = field(default_factory=list)
    """The request, and what was answered: what they are about is looked for where it is told."""
    started_s: float = field(default_factory=time.perf_counter)

    @property
    def subject(self) -> dict[str, str]:
        """IDs and names of what it is about, as its log line shows them."""
        return {
            key: bounded_text(text, MAX_SUBJECT_CHARS)
            for message in self.messages
            for key, text in subject_of(message).items()
        }

    @property
    def level(self) -> str:
        """The level of its log line."""
        if self.code is grpc.StatusCode.OK:
            return "debug" if self.name.is_quiet else "info"
        if self.code is grpc.StatusCode.CANCELLED:
            return "info"
        return "error" if self.code in _OURS else "warning"

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return time.perf_counter() - self.started_s

    def count(self, seconds: float) -> None:
        """Put it into the metrics."""
        counted = self.name.calls_by_code.get(self.code)
        if counted is None:
            counted = metrics.GRPC_REQUESTS.labels(
                self.name.service, self.name.method, self.code.name
            )
            self.name.calls_by_code[self.code] = counted
        counted.inc()
        self.name.seconds_of_calls.observe(seconds)


def subject_of(message: Message) -> dict[str, str]:
    """IDs and names that a request or response carries: `sandbox_id`, `container_id`, `pod`, `image`."""
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
