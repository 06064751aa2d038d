"""Pulls through the daemon: an image comes from a registry, runs, and has its names; what fails says why."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests import images
from tests.harness.registry import docker_registry
from tests.integration.scene import Pod, free_port, refused, written

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon
    from tests.harness.registry import DockerRegistry

pytestmark = pytest.mark.integration

BUSYBOX = Path("/bin/busybox")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture
def store(client: Client) -> Iterator[Client]:
    """The client; images that the test brings are removed after its pods."""
    before = {each.id for each in listed(client)}
    yield client
    client.remove_all_pods()
    for each in listed(client):
        if each.id not in before:
            client.images.RemoveImage(
                api.RemoveImageRequest(image=api.ImageSpec(image=each.id)), timeout=30
            )


def listed(client: Client) -> list[api.Image]:
    return list(client.images.ListImages(api.ListImagesRequest(), timeout=10).images)


def pull(client: Client, name: str, *, auth: api.AuthConfig | None = None) -> str:
    request = api.PullImageRequest(
        image=api.ImageSpec(image=name), auth=auth, sandbox_config=client.pod_config()
    )
    answer: api.PullImageResponse = client.images.PullImage(request, timeout=60)
    return answer.image_ref


def tool_layers(word: str = "hello") -> list[images.LayerBlob]:
    return [
        images.layer(
            images.directory("bin"),
            images.file("bin/busybox", BUSYBOX.read_bytes(), mode=0o755),
            *(images.directory(name) for name in ("dev", "proc", "sys", "srv", "etc")),
            compression="gzip",
        ),
        images.layer(images.file("srv/word", f"{word}\n".encode()), compression="zstd"),
    ]


def test_a_pulled_image_runs_and_has_its_names(store: Client, registry: DockerRegistry) -> None:
    digest = registry.push("team/tool", "1", *tool_layers())
    name = f"{registry.host}/team/tool"
    image_id = pull(store, f"{name}:1", auth=api.AuthConfig(username="me", password="unused"))
    [image] = [each for each in listed(store) if each.id == image_id]
    assert list(image.repo_tags) == [f"{name}:1"]
    assert list(image.repo_digests) == [f"{name}@{digest}"]
    assert pull(store, f"{name}@{digest}") == image_id
    pod = Pod.run(store, f"{name}:1")
    ended = pod.ends(pod.container("/bin/busybox", "cat", "/srv/word"))
    assert written(Path(ended.log_path)) == b"hello\n"
    assert ended.image_id == image_id


def test_an_image_has_one_id_wherever_it_is_told(
    store: Client, registry: DockerRegistry, tmp_path: Path
) -> None:
    layers = tool_layers("same")
    name = f"{registry.host}/team/same"
    digest = registry.push("team/same", "1", *layers)
    pulled = pull(store, f"{name}:1")
    assert pull(store, f"{name}@{digest}") == pulled
    archive = tmp_path / "archive.tar"
    archive.write_bytes(images.oci_archive(*layers, name="test.example/imported:1"))
    [imported] = store.import_image(archive)
    for image_id, image in ((pulled, f"{name}:1"), (imported.id, "test.example/imported:1")):
        spec = api.ImageSpec(image=image, user_specified_image=image, annotations={"a": "b"})
        assert image_id in {each.id for each in listed(store)}
        [entry] = store.images.ListImages(
            api.ListImagesRequest(filter=api.ImageFilter(image=spec)), timeout=10
        ).images
        status = store.images.ImageStatus(api.ImageStatusRequest(image=spec), timeout=10)
        assert entry == status.image
        assert entry.id == entry.spec.image == image_id
        pod = Pod.run(store, image)
        config = pod.container("/bin/busybox", "true")
        # As the kubelet does: by the ID that the pull gave, beside the name that the user wrote.
        config.image.CopyFrom(api.ImageSpec(image=image_id, user_specified_image=image))
        container = pod.create(config)
        assert store.status(container).status.image_id == image_id
        assert {each.image_id for each in store.containers() if each.id == container} == {image_id}
        assert store.status(container).status.image.user_specified_image == image


def test_a_tag_that_moved_leaves_the_old_image_without_a_name(
    store: Client, registry: DockerRegistry
) -> None:
    name = f"{registry.host}/team/moving:1"
    registry.push("team/moving", "1", *tool_layers("old"))
    old = pull(store, name)
    registry.push("team/moving", "1", *tool_layers("new"))
    new = pull(store, name)
    tags = {each.id: list(each.repo_tags) for each in listed(store)}
    assert old != new
    assert (tags[old], tags[new]) == ([], [name])


@pytest.mark.parametrize(
    ("image", "code", "words"),
    [
        ("{host}/team/none:1", grpc.StatusCode.NOT_FOUND, ["http://{host}: 404", "not found"]),
        ("127.0.0.1:{closed}/a", grpc.StatusCode.UNAVAILABLE, ["RegistryUnavailable: ", "refused"]),
        ("r.example/App", grpc.StatusCode.INVALID_ARGUMENT, ["must be lower case"]),
        ("cri-shim.local/pause:1", grpc.StatusCode.INVALID_ARGUMENT, ["built in"]),
    ],
)
def test_a_pull_that_fails_says_why(
    store: Client,
    registry: DockerRegistry,
    image: str,
    code: grpc.StatusCode,
    words: list[str],
) -> None:
    facts = {"host": registry.host, "closed": free_port()}
    with refused(code, *(word.format(**facts) for word in words)):
        pull(store, image.format(**facts))


def test_a_registry_that_says_nothing_holds_nobody_else_up(store: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        name = f"127.0.0.1:{silent.getsockname()[1]}/a:1"
        request = api.PullImageRequest(image=api.ImageSpec(image=name))
        call = store.images.PullImage.future(request, timeout=60)
        connection, _ = silent.accept()
        for _ in range(50):
            listed(store)
            assert not call.done()
        connection.close()
    with refused(grpc.StatusCode.UNAVAILABLE, "RegistryUnavailable: ", name):
        call.result()


def test_a_reload_applies_where_registries_are(
    crash_daemon: Daemon, registry: DockerRegistry
) -> None:
    registry.push("team/tool", "1", *tool_layers())
    certs = crash_daemon.tree / "certs.d"
    (certs / "r.example").mkdir(parents=True)
    (certs / "r.example" / "hosts.toml").write_text(f'[host."http://{registry.host}"]')
    text = crash_daemon.config_file.read_text()
    crash_daemon.config_file.write_text(f"{text}\nimages: {{registry_config: {certs}}}\n")
    crash_daemon.reload()
    deadline = time.monotonic() + 10
    while '"event":"reloaded"' not in crash_daemon.log_file.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pull(crash_daemon.client, "r.example/team/tool:1")
    names = [tag for each in listed(crash_daemon.client) for tag in each.repo_tags]
    assert "r.example/team/tool:1" in names
    crash_daemon.client.images.RemoveImage(
        api.RemoveImageRequest(image=api.ImageSpec(image="r.example/team/tool:1")), timeout=30
    )
