"""Objects in memory and as files, and what becomes of files that are damaged or can't be written."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import (
    AlreadyExistsError,
    CorruptStateError,
    CriShimError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from cri_shim.paths import Paths
from cri_shim.sandbox.store.model import (
    ON_DISK,
    RECORD_FORMAT,
    ContainerStatus,
    SandboxState,
    SandboxStatus,
)
from cri_shim.sandbox.store.store import (
    Container,
    Sandbox,
    Store,
    read_container,
    read_sandbox,
    without_words,
)
from tests.fakes.node_harness import container_config, pod_config
from tests.unit.sandbox.records import make_container, make_sandbox


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(tmp_path / "root", tmp_path / "state")
    made.sandboxes_dir.mkdir(parents=True)
    made.containers_dir.mkdir()
    return made


@pytest.fixture
def sandboxes(paths: Paths) -> Store[Sandbox]:
    return Store("sandbox", paths.sandboxes_dir, paths.sandbox, read_sandbox)


@pytest.fixture
def containers(paths: Paths) -> Store[Container]:
    return Store("container", paths.containers_dir, paths.container, read_container)


def replace_by_directory(path: Path) -> None:
    """Make a file that root can't write either."""
    path.unlink()
    path.mkdir()
    (path / "in the way").touch()


# --- in memory ---------------------------------------------------------------------------------------------------


def test_a_created_object_is_found_by_id_prefix_and_name(sandboxes: Store[Sandbox]) -> None:
    sandbox = make_sandbox()
    sandboxes.create(sandbox)
    assert sandboxes.get(sandbox.id) is sandbox
    assert sandboxes.find(sandbox.id) is sandbox
    assert sandboxes.find("5") is sandbox
    assert sandboxes.by_name(sandbox.name) is sandbox
    assert list(sandboxes) == [sandbox]
    assert len(sandboxes) == 1


@pytest.mark.parametrize("wanted", ["", "6", "5" * 65, "xyz", "5" * 10 + "\n", "../5"])
def test_what_is_not_there_is_not_found(sandboxes: Store[Sandbox], wanted: str) -> None:
    sandboxes.create(make_sandbox())
    with pytest.raises(NotFoundError) as caught:
        sandboxes.find(wanted)
    assert (caught.value.kind, caught.value.key) == ("sandbox", wanted)


def test_a_prefix_that_several_share_is_refused_but_a_whole_id_is_not(
    sandboxes: Store[Sandbox],
) -> None:
    first = make_sandbox("ab" + "0" * 62, name="one")
    sandboxes.create(first)
    sandboxes.create(make_sandbox("ab" + "1" * 62, name="two"))
    with pytest.raises(InvalidArgumentError, match="matches 2 IDs"):
        sandboxes.find("ab")
    assert sandboxes.find("ab0") is first
    assert sandboxes.find(first.id) is first


def test_objects_come_oldest_first_and_may_go_while_they_are_looked_at(
    sandboxes: Store[Sandbox],
) -> None:
    for number in range(3):
        sandboxes.create(make_sandbox(str(number) * 64, name=f"pod-{number}"))
    seen = []
    for sandbox in sandboxes:
        sandboxes.forget(sandbox)
        seen.append(sandbox.record.metadata.name)
    assert seen == ["pod-0", "pod-1", "pod-2"]
    assert len(sandboxes) == 0


def test_a_sandboxs_containers_are_found_without_a_look_at_the_others(
    containers: Store[Container],
) -> None:
    first, second, third = (
        make_container(letter * 64, name=letter, sandbox_id=sandbox * 64)
        for letter, sandbox in (("c", "5"), ("a", "6"), ("b", "5"))
    )
    for container in (first, second, third):
        containers.create(container)
    assert containers.of_sandbox("5" * 64) == [first, third]
    assert containers.of_sandbox("6" * 64) == [second]
    containers.forget(first)
    containers.forget(first)
    containers.forget(second)
    assert containers.of_sandbox("5" * 64) == [third]
    assert containers.of_sandbox("6" * 64) == []
    assert containers.sandboxes == ("5" * 64,), "nothing is kept of a sandbox that has none"


def test_a_request_whose_json_could_not_be_read_back_is_refused_before_anything_is_written(
    sandboxes: Store[Sandbox], paths: Paths
) -> None:
    sandbox = make_sandbox()
    text = json.dumps({"annotations": {"a": "\x01" * (6 << 20)}}).encode()
    sandbox.record = msgspec.structs.replace(sandbox.record, config=msgspec.Raw(text))
    with pytest.raises(
        InvalidArgumentError, match="bytes as JSON: the limit of a record is 33554432"
    ):
        sandboxes.create(sandbox)
    assert not list(paths.sandboxes_dir.iterdir())


def test_a_held_name_is_refused_and_its_holder_named(sandboxes: Store[Sandbox]) -> None:
    first = make_sandbox()
    sandboxes.create(first)
    with pytest.raises(AlreadyExistsError, match=first.id):
        sandboxes.create(make_sandbox("6" * 64))
    assert len(sandboxes) == 1


def test_forgetting_frees_the_name_and_hurts_no_other_holder(sandboxes: Store[Sandbox]) -> None:
    first, second = make_sandbox(), make_sandbox("6" * 64)
    sandboxes.create(first)
    sandboxes.forget(first)
    sandboxes.create(second)
    sandboxes.forget(first)
    assert sandboxes.by_name(second.name) is second


# --- writing -----------------------------------------------------------------------------------------------------


def test_both_files_are_private_and_readable_for_an_operator(
    sandboxes: Store[Sandbox], paths: Paths
) -> None:
    sandbox = make_sandbox()
    sandboxes.create(sandbox)
    of = paths.sandbox(sandbox.id)
    assert of.root_dir.stat().st_mode & 0o777 == 0o700
    assert of.record_file.stat().st_mode & 0o777 == 0o600
    assert json.loads(of.record_file.read_bytes())["config"]["metadata"]["name"] == "web"
    assert json.loads(of.status_file.read_bytes())["ready_at_ns"] == 0


def test_an_update_is_seen_at_once_and_written(sandboxes: Store[Sandbox], paths: Paths) -> None:
    sandbox = make_sandbox()
    sandboxes.create(sandbox)
    status = SandboxStatus(ready_at_ns=7)
    sandboxes.update(sandbox, status)
    assert sandbox.status is status
    written = paths.sandbox(sandbox.id).status_file.read_bytes()
    assert msgspec.json.decode(written, type=SandboxStatus) == status
    assert not sandbox.unsaved


def test_an_object_that_cannot_be_written_is_not_made(
    sandboxes: Store[Sandbox], paths: Paths
) -> None:
    paths.sandboxes_dir.rmdir()
    sandbox = make_sandbox()
    with pytest.raises(CriShimError, match=f"sandbox {sandbox.id}: writing the record"):
        sandboxes.create(sandbox)
    assert sandboxes.get(sandbox.id) is None
    assert sandboxes.by_name(sandbox.name) is None


def test_half_a_record_does_not_stay(
    sandboxes: Store[Sandbox], paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def fill_up(path: Path, data: bytes) -> None:
        written.append(path.name)
        if len(written) == 2:
            raise OSError(28, "No space left on device", str(path))
        path.write_bytes(data)

    for writing in ("write_new", "write_atomic"):
        monkeypatch.setattr(f"cri_shim.sandbox.store.store.{writing}", fill_up)
    with pytest.raises(ResourceExhaustedError, match="No space left"):
        sandboxes.create(make_sandbox())
    # The record comes last: what has one is whole.
    assert written == ["status.json", "record.json"]
    assert list(paths.sandboxes_dir.iterdir()) == []


def test_a_commit_is_on_disk_before_it_is_seen(sandboxes: Store[Sandbox], paths: Paths) -> None:
    sandbox = make_sandbox()
    sandboxes.create(sandbox)
    before = sandbox.status
    ready = SandboxStatus(ready_at_ns=7)
    status_file = paths.sandbox(sandbox.id).status_file
    replace_by_directory(status_file)
    with pytest.raises(CriShimError, match="writing the status"):
        sandboxes.commit(sandbox, ready)
    assert sandbox.status is before

    (status_file / "in the way").unlink()
    status_file.rmdir()
    sandboxes.commit(sandbox, ready)
    assert sandbox.status is ready
    assert msgspec.json.decode(status_file.read_bytes(), type=SandboxStatus) == ready


def test_a_status_that_can_wait_is_shown_and_written_later(
    sandboxes: Store[Sandbox], paths: Paths
) -> None:
    sandbox, other = make_sandbox(), make_sandbox("6" * 64, name="other")
    for each in (sandbox, other):
        sandboxes.create(each)
    status_file = paths.sandbox(sandbox.id).status_file
    before, status = status_file.read_bytes(), SandboxStatus(ready_at_ns=7)
    told: list[Sandbox] = []
    sandboxes.changed = told.append
    sandboxes.show(sandbox, status)
    assert (sandbox.status, told) == (status, [sandbox])
    assert status_file.read_bytes() == before
    sandboxes.save_unsaved()
    assert msgspec.json.decode(status_file.read_bytes(), type=SandboxStatus) == status

    other_file = paths.sandbox(other.id).status_file
    sandboxes.show(other, status)
    sandboxes.forget(other)  # goes before its file is written
    other_file.unlink()
    sandboxes.save_unsaved()
    assert not other_file.exists()


def test_each_step_is_told_once_with_both_states(sandboxes: Store[Sandbox]) -> None:
    told: list[tuple[object, ...]] = []
    sandboxes.stepped = lambda *step: told.append(step)
    sandbox = make_sandbox()
    sandboxes.note(sandbox, SandboxStatus())  # nobody knows it yet
    sandboxes.create(sandbox)
    sandboxes.commit(sandbox, SandboxStatus(ready_at_ns=7))
    sandboxes.update(sandbox, SandboxStatus(ready_at_ns=7, ips=("10.0.0.1",)))  # no step
    sandboxes.show(sandbox, SandboxStatus(ready_at_ns=7, stopped_at_ns=8))
    sandboxes.forget(sandbox)
    sandboxes.forget(sandbox)
    creating, ready, not_ready = SandboxState
    assert told == [
        (sandbox, creating, ready),
        (sandbox, ready, not_ready),
        (sandbox, not_ready, None),
    ]


def test_a_status_that_cannot_be_written_is_kept_and_written_later(
    sandboxes: Store[Sandbox], paths: Paths
) -> None:
    sandbox, other = make_sandbox(), make_sandbox("6" * 64, name="other")
    sandboxes.create(sandbox)
    sandboxes.create(other)
    status_file = paths.sandbox(sandbox.id).status_file
    replace_by_directory(status_file)
    status = SandboxStatus(ready_at_ns=7)
    sandboxes.update(sandbox, status)
    assert sandbox.status is status
    assert [item.unsaved for item in (sandbox, other)] == [True, False]

    sandboxes.save_unsaved()
    assert [item.unsaved for item in (sandbox, other)] == [True, False]

    (status_file / "in the way").unlink()
    status_file.rmdir()
    sandboxes.save_unsaved()
    assert [item.unsaved for item in (sandbox, other)] == [False, False]
    assert msgspec.json.decode(status_file.read_bytes(), type=SandboxStatus) == status


def test_a_failed_write_leaves_no_half_file(sandboxes: Store[Sandbox], paths: Paths) -> None:
    sandbox = make_sandbox()
    sandboxes.create(sandbox)
    replace_by_directory(paths.sandbox(sandbox.id).status_file)
    sandboxes.save(sandbox)
    names = sorted(entry.name for entry in paths.sandbox(sandbox.id).root_dir.iterdir())
    assert names == ["record.json", "status.json"]


# --- reading back ------------------------------------------------------------------------------------------------


def test_what_was_written_is_read_back(
    sandboxes: Store[Sandbox], containers: Store[Container]
) -> None:
    pod = pod_config(log_directory="/var/log/pods/x")
    pod.annotations["unicode"] = "ü ✓"
    pod.linux.security_context.namespace_options.network = api.NODE
    sandbox = make_sandbox(config=pod)
    sandboxes.create(sandbox)
    config = container_config()
    config.envs.add(key="BYTES", value=b"\xff\x00")
    container = make_container(config=config, status=ContainerStatus(committed_at_ns=3))
    containers.create(container)
    [(_, again)] = sandboxes.load()
    assert isinstance(again, Sandbox)
    assert (again.record, again.status, again.config) == (
        sandbox.record,
        sandbox.status,
        sandbox.config,
    )
    [(_, too)] = containers.load()
    assert isinstance(too, Container)
    assert (too.record, too.status, too.config) == (
        container.record,
        container.status,
        without_words(config),
    )


def test_the_request_as_json_is_kept_in_the_file_alone(
    sandboxes: Store[Sandbox], containers: Store[Container], paths: Paths
) -> None:
    sandbox, container = make_sandbox(), make_container()
    requests = [bytes(item.record.config) for item in (sandbox, container)]
    sandboxes.create(sandbox)
    containers.create(container)
    [(_, pod_again)], [(_, again)] = sandboxes.load(), containers.load()
    for item in (sandbox, container, pod_again, again):
        assert isinstance(item, Sandbox | Container)
        assert item.record.config is ON_DISK
    files = paths.sandbox(sandbox.id).record_file, paths.container(container.id).record_file
    for file, request in zip(files, requests, strict=True):
        assert json.loads(file.read_bytes())["config"] == json.loads(request) != {}


def test_nothing_is_loaded_where_nothing_is(sandboxes: Store[Sandbox], paths: Paths) -> None:
    assert list(sandboxes.load()) == []
    paths.sandboxes_dir.rmdir()
    assert list(sandboxes.load()) == []


def test_foreign_entries_are_left_alone(sandboxes: Store[Sandbox], paths: Paths) -> None:
    (paths.sandboxes_dir / "lost+found").mkdir()
    (paths.sandboxes_dir / ("A" * 64)).mkdir()
    assert list(sandboxes.load()) == []
    assert (paths.sandboxes_dir / "lost+found").is_dir()


@pytest.mark.parametrize("name", ["record.json", "status.json"])
@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b"{}}", b'{"id": 5, "ips": 5}', b'{"format": "x"}'],
    ids=repr,
)
def test_a_torn_file_is_reported_and_stops_no_other(
    sandboxes: Store[Sandbox], paths: Paths, name: str, damage: bytes
) -> None:
    torn, whole = make_sandbox(), make_sandbox("6" * 64, name="whole")
    sandboxes.create(torn)
    sandboxes.create(whole)
    (paths.sandbox(torn.id).root_dir / name).write_bytes(damage)
    loaded = dict(sandboxes.load())
    assert isinstance(loaded[torn.id], CorruptStateError)
    assert isinstance(loaded[whole.id], Sandbox)


@pytest.mark.parametrize("name", ["record.json", "status.json"])
def test_a_missing_file_is_named(sandboxes: Store[Sandbox], paths: Paths, name: str) -> None:
    sandbox = make_sandbox()
    sandboxes.create(sandbox)
    (paths.sandbox(sandbox.id).root_dir / name).unlink()
    [(_, error)] = sandboxes.load()
    assert isinstance(error, CorruptStateError)
    assert name in str(error)
    assert "missing" in str(error)


@pytest.mark.parametrize("kind", ["directory", "link to nowhere", "file in the directory's place"])
def test_files_of_a_wrong_kind_are_damage(
    sandboxes: Store[Sandbox], paths: Paths, kind: str
) -> None:
    sandbox = make_sandbox()
    sandboxes.create(sandbox)
    of = paths.sandbox(sandbox.id)
    of.record_file.unlink()
    if kind == "directory":
        of.record_file.mkdir()
    elif kind == "link to nowhere":
        of.record_file.symlink_to("/nonexistent/file")
    else:
        of.status_file.unlink()
        of.root_dir.rmdir()
        of.root_dir.write_text("not a directory")
    [(object_id, error)] = sandboxes.load()
    assert object_id == sandbox.id
    assert isinstance(error, CorruptStateError)


def test_a_record_of_another_object_is_damage(sandboxes: Store[Sandbox], paths: Paths) -> None:
    sandbox = make_sandbox()
    sandboxes.create(sandbox)
    paths.sandbox(sandbox.id).root_dir.rename(paths.sandboxes_dir / ("7" * 64))
    [(_, error)] = sandboxes.load()
    assert isinstance(error, CorruptStateError)
    assert sandbox.id in str(error)


@pytest.mark.parametrize("file", ["record_file", "status_file"])
def test_a_newer_format_is_not_guessed_at(
    sandboxes: Store[Sandbox], paths: Paths, file: str
) -> None:
    sandbox = make_sandbox()
    sandboxes.create(sandbox)
    path = getattr(paths.sandbox(sandbox.id), file)
    document = json.loads(path.read_bytes())
    document["format"] = RECORD_FORMAT + 1
    path.write_text(json.dumps(document))
    [(_, error)] = sandboxes.load()
    assert isinstance(error, CorruptStateError)
    assert "newer cri-shim" in str(error)


def test_a_config_that_is_none_is_damage(containers: Store[Container], paths: Paths) -> None:
    container = make_container()
    containers.create(container)
    path = paths.container(container.id).record_file
    document = json.loads(path.read_bytes())
    document["config"] = {"metadata": 5}
    path.write_text(json.dumps(document))
    [(_, error)] = containers.load()
    assert isinstance(error, CorruptStateError)


def test_unknown_keys_of_a_later_minor_version_are_ignored(
    containers: Store[Container], paths: Paths
) -> None:
    container = make_container()
    containers.create(container)
    path = paths.container(container.id).status_file
    document = json.loads(path.read_bytes())
    document["later"] = True
    path.write_text(json.dumps(document))
    record = paths.container(container.id).record_file
    document = json.loads(record.read_bytes())
    document["config"]["added_to_the_api_later"] = {"x": 1}
    record.write_text(json.dumps(document))
    [(_, again)] = containers.load()
    assert isinstance(again, Container)
    assert again.config == without_words(container.config)


def test_what_only_a_creation_needs_is_not_kept_of_a_request() -> None:
    config = api.ContainerConfig(
        metadata=api.ContainerMetadata(name="main", attempt=2),
        image=api.ImageSpec(image="busybox"),
        working_dir="/srv",
        labels={"a": "b"},
        annotations={"c": "d"},
        mounts=[api.Mount(host_path="/h", container_path="/c")],
        tty=True,
    )
    config.linux.resources.SetInParent()  # shown as resources of a container that has no limits
    asked = api.ContainerConfig()
    asked.CopyFrom(config)
    asked.envs.add(key="K", value=b"v")
    asked.command.append("sh")
    asked.args.extend(["-c", "true"])
    kept = without_words(asked)
    assert kept == config
    assert kept.linux.HasField("resources")
    assert len(asked.envs) == 1


def test_every_field_but_those_is_kept() -> None:
    names = {field.name for field in api.ContainerConfig.DESCRIPTOR.fields}
    config = api.ContainerConfig()
    for field in api.ContainerConfig.DESCRIPTOR.fields:
        value = getattr(config, field.name)
        if hasattr(value, "add"):
            value.add()
        elif field.is_repeated and field.message_type is not None:
            value["k"] = "v"
        elif field.is_repeated:
            value.append("x")
        elif field.message_type is not None:
            value.SetInParent()
        else:
            setattr(config, field.name, type(value)(1))
    assert {field.name for field, _ in config.ListFields()} == names
    kept = without_words(config)
    assert names - {field.name for field, _ in kept.ListFields()} == {"envs", "command", "args"}
    for field, value in kept.ListFields():
        assert value == getattr(config, field.name)


def version_state(version: str) -> Path:
    """The records that a released version wrote: a pod with a container of each kind of end."""
    return Path(__file__).parents[3] / "data" / "state" / version


@pytest.mark.parametrize("version", ["0.1.0"])
def test_records_of_every_released_version_are_read(version: str) -> None:
    paths = Paths(version_state(version), version_state(version))
    sandboxes = Store("sandbox", paths.sandboxes_dir, paths.sandbox, read_sandbox)
    containers = Store("container", paths.containers_dir, paths.container, read_container)
    read = [item for store in (sandboxes, containers) for _, item in store.load()]
    errors = [item for item in read if isinstance(item, CorruptStateError)]
    assert errors == []
    objects = [item for item in read if not isinstance(item, CorruptStateError)]
    states = sorted(str(item.state) for item in objects)
    assert states == ["created", "exited", "ready", "ready", "running"]
    for item in objects:
        assert item.config.metadata.name == item.record.metadata.name
        assert item.status.process
