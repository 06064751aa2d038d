"""Images through the daemon: every form of archive comes in and runs, is found under all its names, and goes."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
import zstandard

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests import images
from tests.integration.scene import Pod, refused, written

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

pytestmark = pytest.mark.integration

NAME = "test.example/team/tool:1.2"
BUSYBOX = Path("/bin/busybox")


@pytest.fixture(scope="module", autouse=True)
def unpacker_at_work(daemon: Daemon, archives: list[Path]) -> None:
    """The process that unpacks is started when it is needed, and stays for a minute: that is no leak of a test."""
    for archive in archives:
        daemon.client.import_image(archive)


@pytest.fixture
def store(client: Client) -> Iterator[Client]:
    """The client; images that the test brings are removed after its pods."""
    before = {each.id for each in listed(client)}
    yield client
    client.remove_all_pods()
    for each in listed(client):
        if each.id not in before:
            remove(client, each.id)


def listed(client: Client, name: str = "") -> list[api.Image]:
    filter_ = api.ImageFilter(image=api.ImageSpec(image=name))
    request = api.ListImagesRequest(filter=filter_ if name else None)
    return list(client.images.ListImages(request, timeout=10).images)


def found(client: Client, name: str) -> api.Image | None:
    request = api.ImageStatusRequest(image=api.ImageSpec(image=name))
    answer = client.images.ImageStatus(request, timeout=10)
    return answer.image if answer.HasField("image") else None


def remove(client: Client, name: str) -> None:
    request = api.RemoveImageRequest(image=api.ImageSpec(image=name))
    client.images.RemoveImage(request, timeout=30)


def tool_layers(word: str = "hello", compression: str = "none") -> list[images.LayerBlob]:
    """A program, and above it a file with `word` in it."""
    return [
        images.layer(
            *(images.directory(name) for name in ("bin", "etc", "srv")),
            images.file("bin/busybox", BUSYBOX.read_bytes(), 0o755),
            images.file("srv/below", b"hidden\n"),
            images.file("srv/kept", b"kept\n"),
            compression=compression,
        ),
        images.layer(
            images.file("srv/word", f"{word}\n".encode()),
            images.whiteout("srv/below"),
            compression=compression,
        ),
    ]


def import_bytes(client: Client, directory: Path, data: bytes, *, name: str = "") -> list[str]:
    """Import an archive; the IDs of what came in."""
    archive = directory / "archive"
    archive.write_bytes(data)
    return [each.id for each in client.import_image(archive, name=name)]


def shown(client: Client, image: str) -> list[str]:
    """What a container of the image finds in /srv, and the word."""
    pod = Pod.run(client, image)
    config = pod.container("/bin/busybox", "sh", "-c", "busybox ls /srv; busybox cat /srv/word")
    return written(Path(pod.ends(config).log_path)).decode().split()


def layer_dirs(daemon: Daemon) -> set[str]:
    return {path.name for path in (daemon.root / "layers").iterdir()}


# --- how they come -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", ["plain", "gzip", "zstd"])
@pytest.mark.parametrize("form", ["oci archive", "oci layout in a directory", "docker archive"])
def test_archive_comes_in_whatever_its_form_and_packing_and_runs(
    store: Client, tmp_path: Path, form: str, packing: str
) -> None:
    compression = "none" if form == "docker archive" else "gzip"
    layers = tool_layers(compression=compression)
    if form == "docker archive":
        data = images.docker_archive(*layers, tags=[NAME])
    else:
        data = images.oci_archive(*layers, name=NAME, prefix="tool/" if "directory" in form else "")
    if packing == "gzip":
        data = gzip.compress(data)
    elif packing == "zstd":
        data = zstandard.ZstdCompressor().compress(data)
    import_bytes(store, tmp_path, data)
    assert shown(store, NAME) == ["kept", "word", "hello"]


@pytest.mark.parametrize(
    "layers",
    [[], [images.layer(tar=b"")], [images.layer(tar=b"", compression="gzip"), images.layer()]],
    ids=["none", "of no byte", "of no entry"],
)
def test_image_of_nothing_runs_what_is_mounted(
    store: Client, tmp_path: Path, layers: list[images.LayerBlob]
) -> None:
    import_bytes(store, tmp_path, images.oci_archive(*layers, name=NAME))
    pod = Pod.run(store, NAME)
    for name in ("first", "second"):
        config = pod.container("/busybox", "ls", "-A", "/", name=name)
        config.mounts.append(
            api.Mount(container_path="/busybox", host_path=str(BUSYBOX), readonly=True)
        )
        shown = written(Path(pod.ends(config).log_path)).decode().split()
        assert {"busybox", "proc", "dev"} <= set(shown)


def test_command_line_imports_an_oci_layout_directory_and_lists_and_removes_it(
    store: Client, daemon: Daemon, tmp_path: Path
) -> None:
    archive = tmp_path / "layout.tar"
    archive.write_bytes(images.oci_archive(*tool_layers(), name=NAME))
    with tarfile.open(archive) as tar:
        # Debian 12's Python lacks the argument, newer ones warn without it.
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(tmp_path / "layout", **safe)  # type: ignore[arg-type]
    daemon.cli("image", "import", str(tmp_path / "layout"))
    assert NAME in daemon.cli("image", "list").stdout
    assert shown(store, NAME) == ["kept", "word", "hello"]
    store.remove_all_pods()
    daemon.cli("image", "rm", NAME)
    assert found(store, NAME) is None


def test_name_that_is_given_replaces_the_archives_own(store: Client, tmp_path: Path) -> None:
    (image_id,) = import_bytes(
        store, tmp_path, images.oci_archive(*tool_layers(), name=NAME), name="other.example/x"
    )
    image = found(store, image_id)
    assert image is not None
    assert list(image.repo_tags) == ["other.example/x:latest"]
    assert found(store, NAME) is None


def test_bad_archive_is_refused_and_nothing_of_it_stays(store: Client, tmp_path: Path) -> None:
    layers = tool_layers()
    digest = layers[1].digest.replace(":", "/")
    spoilt = images.oci_archive(*layers, name=NAME, spoil={f"blobs/{digest}": b"not the layer"})
    for data in (b"", b"no archive at all", images.oci_archive(*layers)[:100_000], spoilt):
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            import_bytes(store, tmp_path, data)
    assert found(store, NAME) is None


# --- how they are found ------------------------------------------------------------------------------------------


def test_image_is_found_by_tag_id_beginning_of_the_id_and_digest(
    store: Client, tmp_path: Path
) -> None:
    archive = images.oci_archive(*tool_layers(), name=NAME, user="1234", env=["A=b"])
    (image_id,) = import_bytes(store, tmp_path, archive)
    image = found(store, NAME)
    assert image is not None
    assert image.id == image_id
    assert list(image.repo_tags) == [NAME]
    assert image.size > BUSYBOX.stat().st_size
    assert (image.uid.value, image.username) == (1234, "")
    (digest,) = image.repo_digests
    assert digest.startswith("test.example/team/tool@sha256:")
    bare = image_id.removeprefix("sha256:")
    for name in (image_id, bare, bare[:12], image_id[:20], digest):
        same = found(store, name)
        assert same is not None, name
        assert same.id == image_id
        assert [each.id for each in listed(store, name)] == [image_id]


def test_short_name_is_that_of_the_hub(store: Client, tmp_path: Path) -> None:
    import_bytes(store, tmp_path, images.docker_archive(*tool_layers(), tags=["tool"]))
    for name in ("tool", "tool:latest", "library/tool", "docker.io/library/tool:latest"):
        assert found(store, name) is not None, name
    (entry,) = listed(store, "tool")
    assert list(entry.repo_tags) == ["docker.io/library/tool:latest"]


def test_absent_image_is_no_error_to_ask_for_or_to_remove(store: Client) -> None:
    assert found(store, "test.example/absent:1") is None
    assert listed(store, "test.example/absent:1") == []
    remove(store, "test.example/absent:1")


def test_bad_names_are_refused_with_what_is_wrong(store: Client) -> None:
    bad = {"team/UPPER:1": "lower case", "a:b:c": "reference", "x@sha256:1": "digest"}
    for name, word in bad.items():
        with refused(grpc.StatusCode.INVALID_ARGUMENT, name, word):
            found(store, name)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "image"):
        found(store, "")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "image"):
        remove(store, "")


def test_verbose_status_tells_more(store: Client, image: str) -> None:
    request = api.ImageStatusRequest(image=api.ImageSpec(image=image), verbose=True)
    info = store.images.ImageStatus(request, timeout=10).info["info"]
    assert '"imageSpec"' in info
    assert '"layers"' in info


# --- how they go -------------------------------------------------------------------------------------------------


def test_removal_by_one_name_takes_all_names(store: Client, daemon: Daemon, tmp_path: Path) -> None:
    before = layer_dirs(daemon)
    names = ["test.example/one:1", "test.example/two:2"]
    (image_id,) = import_bytes(store, tmp_path, images.docker_archive(*tool_layers(), tags=names))
    image = found(store, image_id)
    assert image is not None
    assert sorted(image.repo_tags) == names
    assert len(layer_dirs(daemon) - before) == 2
    remove(store, names[0])
    assert [found(store, name) for name in (*names, image_id)] == [None, None, None]
    assert layer_dirs(daemon) == before


def test_layers_that_another_image_shares_stay(
    store: Client, daemon: Daemon, tmp_path: Path
) -> None:
    before = layer_dirs(daemon)
    for word in ("one", "two"):
        archive = images.oci_archive(*tool_layers(word), name=f"test.example/{word}:1")
        import_bytes(store, tmp_path, archive)
    assert len(layer_dirs(daemon) - before) == 3
    remove(store, "test.example/one:1")
    assert shown(store, "test.example/two:1") == ["kept", "word", "two"]
    assert len(layer_dirs(daemon) - before) == 2


def test_image_removed_under_a_container_stays_usable_until_the_container_goes(
    store: Client, daemon: Daemon, tmp_path: Path
) -> None:
    before = layer_dirs(daemon)
    import_bytes(store, tmp_path, images.oci_archive(*tool_layers(), name=NAME))
    pod = Pod.run(store, NAME)
    container = pod.start(pod.container("/bin/busybox", "sleep", "3600"))
    remove(store, NAME)
    assert found(store, NAME) is None
    answer = store.exec(container, "/bin/busybox", "cat", "/srv/word")
    assert answer.stdout == b"hello\n"
    assert store.status(container).status.image.image == NAME
    assert len(layer_dirs(daemon) - before) == 2
    with refused(grpc.StatusCode.NOT_FOUND, NAME):
        pod.create(pod.container("/bin/busybox", "true"))
    store.remove(container)
    assert layer_dirs(daemon) == before


def test_image_removed_under_a_pod_is_swept_with_the_pod(
    store: Client, daemon: Daemon, tmp_path: Path
) -> None:
    before = layer_dirs(daemon)
    import_bytes(store, tmp_path, images.oci_archive(*tool_layers(), name=NAME))
    pod = Pod.run(store, NAME)
    for _ in range(2):
        pod.create(pod.container("/bin/busybox", "true"))
    remove(store, NAME)
    store.remove_pod(pod.id)
    assert layer_dirs(daemon) == before


# --- what they take ----------------------------------------------------------------------------------------------


def test_file_system_usage_follows_what_is_there(store: Client, tmp_path: Path) -> None:
    def used() -> int:
        answer = store.images.ImageFsInfo(api.ImageFsInfoRequest(), timeout=10)
        (filesystem,) = answer.image_filesystems
        assert Path(filesystem.fs_id.mountpoint).is_dir()
        assert filesystem.inodes_used.value > 0
        return filesystem.used_bytes.value

    before = used()
    import_bytes(store, tmp_path, images.oci_archive(*tool_layers(), name=NAME))
    assert used() - before >= BUSYBOX.stat().st_size
    remove(store, NAME)
    assert used() == before


def test_nothing_is_listed_after_all_images_were_removed_until_a_pod_brings_the_pinned_pause_image(
    crash_daemon: Daemon, image: str
) -> None:
    client = crash_daemon.client
    pod = Pod.run(client, image)
    container = pod.sleeper()

    def remove_all() -> None:
        """What `crictl rmi -a` does."""
        for each in listed(client):
            remove(client, each.id)
        assert listed(client) == []

    remove_all()
    crash_daemon.restart()
    assert listed(client) == []
    assert pod.asks(container, "echo still there") == "still there\n"
    client.run_pod(client.pod_config())
    assert [(list(each.repo_tags), each.pinned) for each in listed(client)] == [
        (["cri-shim.local/pause:1"], True)
    ]
    remove_all()
    client.remove_all_pods()
    assert listed(client) == []
