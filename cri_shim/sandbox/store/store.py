"""Stores sandboxes and containers in memory and on disk. The only writer of record.json and status.json.

Rules:
- Memory is authoritative while the daemon runs, the files after a crash. One directory per object, no database.
- `create` writes the record before the caller's first effect. A status changes only through methods of the store.
- The JSON of a request is kept only in the file.
- Only a creation fails if a write fails (`create`, `commit`). Any other status that cannot be written (disk full) is
  visible at once, and `save_unsaved` writes it later. After a crash, recovery derives it from exit files and kernel.
- No fsync: the files must survive a crash of the daemon. After a power cut all containers have ended anyway.
- A damaged file does not stop the rest: `load` returns an error for its object.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec
import structlog
from google.protobuf import json_format

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import (
    AlreadyExistsError,
    CorruptStateError,
    InvalidArgumentError,
    NotFoundError,
    host_step,
)
from cri_shim.host.files import read_bounded, write_atomic, write_new, write_over
from cri_shim.ids import is_id, is_id_prefix
from cri_shim.quoting import quoted
from cri_shim.sandbox.store.formats import in_this_format
from cri_shim.sandbox.store.model import (
    ON_DISK,
    ContainerRecord,
    ContainerState,
    ContainerStatus,
    SandboxRecord,
    SandboxState,
    SandboxStatus,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from cri_shim.paths import ObjectPaths
    from cri_shim.sandbox.network.host_ports import HostPort

log = structlog.get_logger()
MAX_RECORD_BYTES = 32 << 20
"""The largest record: twice the largest gRPC message."""

MAX_QUICK_BYTES = 65536
"""Larger requests are converted to JSON in a thread."""
_ONLY_TO_CREATE = frozenset({"envs", "command", "args"})


class Sandbox:
    """A sandbox. Hashable by identity. Its status is replaced as a whole."""

    def __init__(
        self, record: SandboxRecord, status: SandboxStatus, config: api.PodSandboxConfig
    ) -> None:
        self.record = record
        self.status = status
        self.config = config
        self.host_ports: Mapping[HostPort, int] | None = None
        """The parsed host ports of the request, cached by `network.host_ports.ports_of`."""
        self.unsaved = False
        self.list_entry: tuple[SandboxStatus, bytes] | None = None
        """A status and the encoded entry in lists that shows it; the lists' own."""

    @property
    def id(self) -> str:
        """The sandbox ID."""
        return self.record.id

    @property
    def sandbox_id(self) -> str:
        """Its own ID: the counterpart of a container's `sandbox_id`."""
        return self.record.id

    @property
    def name(self) -> str:
        """The reserved name."""
        return self.record.name

    @property
    def state(self) -> SandboxState:
        """The state its times amount to."""
        return self.status.state


class Container:
    """A container. Hashable by identity. Its status is replaced as a whole."""

    def __init__(
        self, record: ContainerRecord, status: ContainerStatus, config: api.ContainerConfig
    ) -> None:
        self.record = record
        self.status = status
        self.config = config
        """The request's configuration. `without_words` of it once the container is complete."""
        self.lock = asyncio.Lock()
        self.unsaved = False
        self.list_entry: tuple[ContainerStatus, bytes] | None = None
        """A status and the encoded entry in lists that shows it; the lists' own."""
        self.ended = asyncio.Event()
        """Set once the exit is known."""
        self.process_spec: dict[str, object] | None = None
        """The base of every exec: the runtime-spec's `process` without its command. Read from the bundle if None."""

    @property
    def id(self) -> str:
        """The container ID."""
        return self.record.id

    @property
    def sandbox_id(self) -> str:
        """The sandbox to which it belongs."""
        return self.record.sandbox_id

    @property
    def name(self) -> str:
        """The reserved name."""
        return self.record.name

    @property
    def state(self) -> ContainerState:
        """The state its times amount to."""
        return self.status.state


ObjectT = TypeVar("ObjectT", Sandbox, Container)
RecordT = TypeVar("RecordT", SandboxRecord, ContainerRecord)
ConfigT = TypeVar("ConfigT", api.PodSandboxConfig, api.ContainerConfig)
State = SandboxState | ContainerState


class Store(Generic[ObjectT]):
    """All objects of one kind."""

    def __init__(
        self,
        kind: str,
        directory: Path,
        paths_of: Callable[[str], ObjectPaths],
        read: Callable[[bytes, bytes], ObjectT],
    ) -> None:
        self.kind = kind
        self._directory = directory
        self._paths_of = paths_of
        self._read: Callable[[bytes, bytes], ObjectT] = read
        self._by_id: dict[str, ObjectT] = {}
        self._by_name: dict[str, ObjectT] = {}
        self._by_sandbox: dict[str, dict[str, ObjectT]] = {}
        """Sandbox ID -> object ID -> the object."""
        self.changed: Callable[[ObjectT], None] = lambda _: None
        """Called after an object was added or forgotten, or its status changed, for indexes over the status."""
        self.stepped: Callable[[ObjectT, State, State | None], None] = lambda *_: None
        """Called after an object's state became another, with both; with None after it was forgotten."""

    def __iter__(self) -> Iterator[ObjectT]:
        """All objects, including unfinished creations, the oldest first."""
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, object_id: str) -> ObjectT | None:
        """The object with exactly this ID."""
        return self._by_id.get(object_id)

    def by_name(self, name: str) -> ObjectT | None:
        """The object that holds a reserved name."""
        return self._by_name.get(name)

    def of_sandbox(self, sandbox_id: str) -> list[ObjectT]:
        """All objects of a sandbox, including unfinished creations, the oldest first. Looked up in an index."""
        return list(self._by_sandbox.get(sandbox_id, {}).values())

    @property
    def sandboxes(self) -> tuple[str, ...]:
        """The sandboxes that have objects."""
        return tuple(self._by_sandbox)

    def find(self, id_or_prefix: str) -> ObjectT:
        """Find an object by its ID or a unique prefix of it.

        Raises NotFoundError; InvalidArgumentError for an ambiguous prefix.
        """
        exact = self._by_id.get(id_or_prefix)
        if exact is not None:
            return exact
        if not is_id_prefix(id_or_prefix):
            raise NotFoundError(self.kind, id_or_prefix)
        matches = [o for key, o in self._by_id.items() if key.startswith(id_or_prefix)]
        if len(matches) > 1:
            raise InvalidArgumentError(
                f"{self.kind} ID prefix {quoted(id_or_prefix)} matches {len(matches)} IDs: use a longer prefix"
            )
        if not matches:
            raise NotFoundError(self.kind, id_or_prefix)
        return matches[0]

    def create(self, item: ObjectT) -> None:
        """Store a new object, before its first effect.

        Raises AlreadyExistsError if another object holds the name; InvalidArgumentError if the request is too large for
        a record; ResourceExhaustedError if the disk is full; CriShimError.
        """
        holder = self._by_name.get(item.name)
        if holder is not None:
            raise AlreadyExistsError(f"{self.kind} name {item.name} is held by {holder.id}")
        record = msgspec.json.encode(item.record)
        if len(record) > MAX_RECORD_BYTES:
            # JSON may escape one byte of a request to six.
            raise InvalidArgumentError(
                f"the request has {len(record)} bytes as JSON: the limit of a record is {MAX_RECORD_BYTES}"
            )
        paths = self._paths_of(item.id)
        with host_step(f"{self.kind} {item.id}: writing the record"):
            try:
                paths.root_dir.mkdir(mode=0o700)
                # Not atomic: nothing reads a status without a record.
                write_new(paths.status_file, msgspec.json.encode(item.status))
                write_atomic(paths.record_file, record)
            except OSError:
                _take_back(paths)
                raise
        item.record = _without_request(item.record)
        self.adopt(item)

    def commit(self, item: ObjectT, status: SandboxStatus | ContainerStatus) -> None:
        """Replace the status at the end of a creation. It is written first, since the client will rely on it.

        Raises ResourceExhaustedError if the disk is full, CriShimError. Then the object is unchanged.
        """
        with host_step(f"{self.kind} {item.id}: writing the status"):
            write_over(self._paths_of(item.id).status_file, msgspec.json.encode(status))
        item.unsaved = False
        self.note(item, status)

    def adopt(self, item: ObjectT) -> None:
        """Add an object whose files exist."""
        self._by_id[item.id] = item
        self._by_name[item.name] = item
        self._by_sandbox.setdefault(item.sandbox_id, {})[item.id] = item
        self.changed(item)

    def note(self, item: ObjectT, status: SandboxStatus | ContainerStatus) -> None:
        """Replace the object's status in memory only. The caller follows with `save` or `update`."""
        before = item.state
        item.status = status  # type: ignore[assignment]
        self.changed(item)
        if item.state is not before and self._by_id.get(item.id) is item:
            self.stepped(item, before, item.state)

    def update(self, item: ObjectT, status: SandboxStatus | ContainerStatus) -> None:
        """Replace the object's status in memory, then on disk. A failed write is retried later."""
        self.note(item, status)
        self.save(item)

    def show(self, item: ObjectT, status: SandboxStatus | ContainerStatus) -> None:
        """Replace the object's status in memory. `save_unsaved` writes it, unless the object is gone by then."""
        self.note(item, status)
        item.unsaved = True

    def save(self, item: ObjectT) -> None:
        """Write the object's current status. A failure is not raised; `save_unsaved` retries."""
        try:
            write_over(self._paths_of(item.id).status_file, msgspec.json.encode(item.status))
        except OSError as error:
            if not item.unsaved:
                log.error("cannot write status", kind=self.kind, id=item.id, error=str(error))
            item.unsaved = True
        else:
            item.unsaved = False

    def save_unsaved(self) -> None:
        """Write all statuses that are not on disk yet."""
        for item in self._by_id.values():
            if item.unsaved:
                self.save(item)

    def forget(self, item: ObjectT) -> None:
        """Remove the object from memory. The caller removes its files."""
        if was_there := self._by_id.get(item.id) is item:
            del self._by_id[item.id]
            others = self._by_sandbox[item.sandbox_id]
            del others[item.id]
            if not others:
                del self._by_sandbox[item.sandbox_id]
        if self._by_name.get(item.name) is item:
            del self._by_name[item.name]
        self.changed(item)
        if was_there:
            self.stepped(item, item.state, None)

    def load(self) -> Iterator[tuple[str, ObjectT | CorruptStateError]]:
        """Read all objects on disk. Yields each ID with the object, or with the error of a damaged one."""
        if not self._directory.is_dir():
            return
        for directory in sorted(self._directory.iterdir()):
            if not is_id(directory.name):
                log.warning("ignored: its name is not an ID", kind=self.kind, path=str(directory))
                continue
            yield directory.name, self._load(directory.name)

    def _load(self, object_id: str) -> ObjectT | CorruptStateError:
        paths = self._paths_of(object_id)
        try:
            record = read_bounded(paths.record_file, MAX_RECORD_BYTES)
            status = read_bounded(paths.status_file, MAX_RECORD_BYTES)
            item = self._read(in_this_format(record), in_this_format(status))
        except FileNotFoundError as error:
            return CorruptStateError(f"{self.kind} {object_id}: {error.filename} is missing")
        except CorruptStateError as error:
            return CorruptStateError(f"{self.kind} {object_id}: {error}")
        except (OSError, msgspec.MsgspecError, json_format.ParseError, ValueError) as error:
            return CorruptStateError(f"{self.kind} {object_id}: unreadable record: {error}")
        if item.record.id != object_id:
            return CorruptStateError(f"{self.kind} {object_id}: the record is of {item.record.id}")
        return item


def _take_back(paths: ObjectPaths) -> None:
    """Undo `create` without opening files, since it may have failed for lack of descriptors."""
    for file in (paths.record_file, paths.status_file):
        file.unlink(missing_ok=True)
    if paths.root_dir.exists():
        paths.root_dir.rmdir()


def read_sandbox(record: bytes, status: bytes) -> Sandbox:
    """Parse a sandbox's record and status."""
    parsed = msgspec.json.decode(record, type=SandboxRecord)
    config = _read_config(parsed.config, api.PodSandboxConfig())
    return Sandbox(
        _without_request(parsed), msgspec.json.decode(status, type=SandboxStatus), config
    )


def read_container(record: bytes, status: bytes) -> Container:
    """Parse a container's record and status."""
    parsed = msgspec.json.decode(record, type=ContainerRecord)
    config = without_words(_read_config(parsed.config, api.ContainerConfig()))
    return Container(
        _without_request(parsed), msgspec.json.decode(status, type=ContainerStatus), config
    )


def _without_request(record: RecordT) -> RecordT:
    return msgspec.structs.replace(record, config=ON_DISK)


def without_words(config: api.ContainerConfig) -> api.ContainerConfig:
    """A copy of a request without the fields that only the creation needs: environment and command.

    60,000 variables take 4 MiB. A message frees its memory only as a whole, so clearing its fields would free nothing.
    """
    kept = api.ContainerConfig()
    for field, value in config.ListFields():
        if field.name in _ONLY_TO_CREATE:
            continue
        if field.is_repeated:
            getattr(kept, field.name).MergeFrom(value)
        elif field.message_type is not None:
            getattr(kept, field.name).CopyFrom(value)
        else:
            setattr(kept, field.name, value)
    return kept


def _read_config(text: msgspec.Raw, empty: ConfigT) -> ConfigT:
    # Ignore fields that a later version of the API added.
    return json_format.Parse(bytes(text), empty, ignore_unknown_fields=True)


async def as_json_aside(message: api.PodSandboxConfig | api.ContainerConfig) -> msgspec.Raw:
    """`as_json`, in a thread for a large message: the largest one takes a tenth of a second."""
    if message.ByteSize() <= MAX_QUICK_BYTES:
        return as_json(message)
    return await asyncio.to_thread(as_json, message)


def as_json(
    message: api.PodSandboxConfig
    | api.LinuxPodSandboxConfig
    | api.ContainerConfig
    | api.LinuxContainerResources,
) -> msgspec.Raw:
    """Convert a CRI message to JSON, as in a record, with the field names of the .proto file."""
    text = json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None)
    return msgspec.Raw(text.encode())
