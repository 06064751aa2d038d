"""Lists joined from kept bytes against lists encoded anew, whatever happens to the objects in between."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cri_shim._pb.cri.v1 import api_pb2 as v1
from cri_shim._pb.cri.v1alpha2 import api_pb2 as v1alpha2
from cri_shim.errors import WrongStateError
from cri_shim.paths import Paths
from cri_shim.rpc import translate_containers, translate_pods
from cri_shim.rpc.encoded import Encoded, encoder, joined
from cri_shim.sandbox.store.model import ContainerStatus, Process, SandboxStatus, User
from cri_shim.sandbox.store.store import Container, Sandbox, Store, read_container, read_sandbox
from tests.unit.rpc.fakes import make_container, make_sandbox, serving

if TYPE_CHECKING:
    from collections.abc import Callable

PROCESS = Process(7, 70)
CONTAINER_STEPS: list[Callable[[ContainerStatus], ContainerStatus]] = [
    lambda status: status.committed(1, PROCESS, PROCESS, User(0, 0, ())),
    lambda status: status.started(2),
    lambda status: status.exited(3, 137, reason="Error"),
]
SANDBOX_STEPS: list[Callable[[SandboxStatus], SandboxStatus]] = [
    lambda status: status.committed(1, PROCESS),
    lambda status: status.stopped(2, "stopped"),
]
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["create", "step", "step", "step", "forget", "restart"]), st.integers(0, 11)
    ),
    max_size=30,
)


def test_a_message_is_encoded_and_bytes_pass() -> None:
    encode = encoder(v1.VersionResponse)
    message = v1.VersionResponse(version="1")
    assert encode(message) == message.SerializeToString()
    ready = Encoded(b"ready")
    assert encode(ready) is ready


@given(CHANGES)
@settings(max_examples=60, deadline=None)
def test_a_list_of_sandboxes_is_what_it_would_be_encoded_anew(
    changes: list[tuple[str, int]],
) -> None:
    def checked(store: Store[Sandbox]) -> None:
        raw = joined(store, translate_pods.list_entry)
        plain = v1.ListPodSandboxResponse(items=map(translate_pods.pod_sandbox, store))
        assert v1.ListPodSandboxResponse.FromString(raw) == plain
        assert _older(v1alpha2.ListPodSandboxResponse, raw) == _older(
            v1alpha2.ListPodSandboxResponse, plain.SerializeToString()
        )

    with tempfile.TemporaryDirectory() as directory:
        paths = Paths(Path(directory), Path(directory) / "run")
        paths.sandboxes_dir.mkdir()
        _live(
            lambda: Store("sandbox", paths.sandboxes_dir, paths.sandbox, read_sandbox),
            lambda number: make_sandbox(
                f"{number:064x}",
                v1.PodSandboxConfig(metadata=v1.PodSandboxMetadata(name=f"pod-{number}")),
                SandboxStatus(),
            ),
            SANDBOX_STEPS,
            changes,
            checked,
        )


@given(CHANGES)
@settings(max_examples=60, deadline=None)
def test_a_list_of_containers_is_what_it_would_be_encoded_anew(
    changes: list[tuple[str, int]],
) -> None:
    def checked(store: Store[Container]) -> None:
        raw = joined(store, translate_containers.list_entry)
        plain = v1.ListContainersResponse(
            containers=map(translate_containers.container_entry, store)
        )
        assert v1.ListContainersResponse.FromString(raw) == plain
        assert _older(v1alpha2.ListContainersResponse, raw) == _older(
            v1alpha2.ListContainersResponse, plain.SerializeToString()
        )

    with tempfile.TemporaryDirectory() as directory:
        paths = Paths(Path(directory), Path(directory) / "run")
        paths.containers_dir.mkdir()
        _live(
            lambda: Store("container", paths.containers_dir, paths.container, read_container),
            lambda number: make_container(
                f"{number:064x}",
                config=v1.ContainerConfig(metadata=v1.ContainerMetadata(name=f"c-{number}")),
            ),
            CONTAINER_STEPS,
            changes,
            checked,
        )


def _live(
    make_store: Callable[[], Store[Any]],
    make: Callable[[int], Any],
    steps: list[Callable[[Any], Any]],
    changes: list[tuple[str, int]],
    checked: Callable[[Store[Any]], None],
) -> None:
    """Objects come, change, go and are read back; after each of that the list is looked at."""
    store = make_store()
    made = 0
    for change, number in changes:
        there = list(store)
        item = there[number % len(there)] if there else None
        if change == "create":
            made += 1
            store.create(make(made))
        elif change == "restart":
            store = make_store()
            for _, found in store.load():
                assert not isinstance(found, Exception)
                store.adopt(found)
        elif item is not None and change == "step":
            try:
                status = steps[number % len(steps)](item.status)
            except WrongStateError:
                continue
            # A creation ends by `commit`, everything else is an `update`.
            (store.commit if number % len(steps) == 0 else store.update)(item, status)
        elif item is not None:
            store.forget(item)
        checked(store)


def _older(kind: Any, raw: bytes) -> Any:
    """As a client of the older version reads it: what that version doesn't know is left out."""
    message = kind.FromString(raw)
    message.DiscardUnknownFields()
    return message


@pytest.mark.asyncio
async def test_both_versions_are_served_the_kept_entries(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        daemon.pods.sandboxes = [make_sandbox()]
        daemon.containers.containers = [make_container()]
        for _ in range(2):
            pods = await clients.runtime.ListPodSandbox(v1.ListPodSandboxRequest())
            assert list(pods.items) == [translate_pods.pod_sandbox(daemon.pods.sandboxes[0])]
            old = await clients.old_runtime.ListContainers(v1alpha2.ListContainersRequest())
            assert [(c.id, dict(c.labels)) for c in old.containers] == [
                ("c" * 64, {"tier": "front"})
            ]
            # Bytes of the last round: another status is another entry.
            daemon.pods.sandboxes[0].status = daemon.pods.sandboxes[0].status.stopped(9, "stopped")
        assert [pod.state for pod in pods.items] == [v1.SANDBOX_NOTREADY]
