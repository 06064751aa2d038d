"""Pulls with the real, confined unpacker: from Debian's docker-registry, and from a registry that misbehaves."""

from __future__ import annotations

import asyncio
import os
import random
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

import cri_shim
from cri_shim.errors import BadArchiveError, RegistryUnavailableError, UnavailableError
from cri_shim.image.pull import Puller
from cri_shim.image.store import ImageStore
from tests import images
from tests.fakes.registry import Corrupt, Cut, FakeRegistry, Stall
from tests.harness.procs import used_and_waited_s
from tests.harness.registry import docker_registry
from tests.images import device, directory, fifo, file, hardlink, layer, opaque, symlink, whiteout
from tests.integration.image.scene import (
    files_of,
    own_children,
    settings,
    trees,
    until_children_are,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from cri_shim.host.process import Reaper
    from tests.harness.registry import DockerRegistry

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]

CAPABILITY = b"\x01\x00\x00\x02\x00\x20\x00\x00" + bytes(12)
KILLS = 12

BASE = layer(
    directory("etc"),
    file("etc/shadow", b"secret", mode=0o640, gid=42),
    directory("gone"),
    file("gone/below", b"x"),
    directory("hidden"),
    file("hidden/old", b"x"),
    file("bin", b"binary" * 50_000, mode=0o4755),
    hardlink("bin2", "bin", mode=0o4755),
    symlink("link", "../../etc/passwd"),
    compression="gzip",
)
MIDDLE = layer(
    whiteout("gone"),
    directory("hidden"),
    opaque("hidden"),
    file("hidden/new", b"y", xattrs={"security.capability": CAPABILITY}),
    compression="zstd",
)
TOP = layer(device("null", 1, 3, 0o666), fifo("pipe"), file("etc/added", b"z", uid=7))


@pytest.fixture(scope="module")
def real_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest_asyncio.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        yield registry


@pytest_asyncio.fixture
async def puller(store: ImageStore, tmp_path: Path) -> AsyncIterator[Puller]:
    puller = Puller(store, settings(tmp_path))
    yield puller
    await puller.close(0)


async def test_what_a_registry_sends_is_what_an_archive_brings(
    puller: Puller, store: ImageStore, real_registry: DockerRegistry, tmp_path: Path, reaper: Reaper
) -> None:
    digest = real_registry.push("team/app", "1", BASE, MIDDLE, TOP, cmd=["x"])
    pulled = await puller.pull(f"{real_registry.host}/team/app:1")
    other = await ImageStore.open(tmp_path / "i", tmp_path / "l", reaper)
    try:
        archive = images.oci_archive(BASE, MIDDLE, TOP, name="r.example/a:1", cmd=["x"])
        [imported] = await other.import_archive(images.stream(archive))
        assert trees(store, pulled) == trees(other, imported)
    finally:
        await other.close()
    assert pulled.id == imported.id
    assert pulled.repo_digests == (f"{real_registry.host}/team/app@{digest}",)
    again = await puller.pull(f"{real_registry.host}/team/app@{digest}")
    assert again is pulled


async def test_a_real_registry_goes_on_where_a_transfer_broke(
    puller: Puller, store: ImageStore, real_registry: DockerRegistry, tmp_path: Path
) -> None:
    noise = layer(file("noise", random.Random(1).randbytes(3 << 20)))
    real_registry.push("team/noise", "1", noise)
    async with cutting_proxy(real_registry.host, after_bytes=1 << 20, times=2) as proxy:
        (tmp_path / "certs.d" / "r.example").mkdir(parents=True)
        (tmp_path / "certs.d" / "r.example" / "hosts.toml").write_text(
            f'server = "http://{proxy.host}"'
        )
        image = await puller.pull("r.example/team/noise:1")
        assert proxy.cuts == 2
    [tree] = trees(store, image)
    assert stat.S_ISREG(tree["noise"][0])  # type: ignore[arg-type]


async def test_hostile_layers_are_refused_and_leave_nothing(
    puller: Puller, registry: FakeRegistry, tmp_path: Path
) -> None:
    hostile = {
        "outside": layer(symlink("out", "/"), hardlink("passwd", "out/etc/passwd")),
        "no-tar": images.LayerBlob(b"no tar at all" * 99, BASE.diff_id, BASE.media_type),
        "lying": images.LayerBlob(TOP.blob, BASE.diff_id, BASE.media_type),
        "cut-gzip": images.LayerBlob(BASE.blob[:-100], BASE.diff_id, BASE.media_type),
    }
    for name, bad in hostile.items():
        registry.add("team/bad", BASE, bad, tag=name)
        with pytest.raises(BadArchiveError, match=bad.digest if name != "lying" else "digest"):
            await puller.pull(f"{registry.host}/team/bad:{name}")
        assert files_of(tmp_path) == []
    climbing = layer(file("../../../up"), symlink("up", ".."), file("up/../../x"))
    registry.add("team/climbing", climbing, tag="1")
    image = await puller.pull(f"{registry.host}/team/climbing:1")
    assert {"up", "x"} >= set(trees(puller_store(puller), image)[0]) - {"."}


def puller_store(puller: Puller) -> ImageStore:
    return puller._store


@pytest.mark.parametrize(
    "fault",
    [
        Cut(BASE.digest, 2, after_bytes=500),
        Stall(BASE.digest, 1, after_bytes=500),
        Corrupt(BASE.digest, 1, at=30),
        Corrupt(BASE.digest, 2, at=len(BASE.blob) - 20),
        Corrupt(TOP.digest, 1, at=3000),
    ],
)
async def test_faults_that_pass_end_in_the_right_bytes(
    store: ImageStore, registry: FakeRegistry, tmp_path: Path, fault: Cut | Stall | Corrupt
) -> None:
    registry.add("team/app", BASE, MIDDLE, TOP, tag="1")
    registry.add("team/same", BASE, MIDDLE, TOP, tag="1", user="1")
    times, puller = fault.times, Puller(store, settings(tmp_path, 4))
    registry.faults.append(fault)
    image = await puller.pull(f"{registry.host}/team/app:1")
    assert fault.times == 0
    fault.times = times
    tree = trees(store, image)[2]
    assert tree["bin"][-1] == b"binary" * 50_000
    assert tree["bin"][3] == 2


async def test_many_pulls_at_once_share_what_they_have_in_common(
    puller: Puller, store: ImageStore, registry: FakeRegistry
) -> None:
    for number in range(6):
        registry.add("team/app", BASE, layer(file("n", b"%d" % number)), tag=str(number))
    pulled = await asyncio.gather(
        *(puller.pull(f"{registry.host}/team/app:{number % 6}") for number in range(12))
    )
    assert len({image.id for image in pulled}) == 6
    assert registry.count("GET", BASE.digest) == 1
    assert len({store.layer_stack(image).lowers[-1] for image in pulled}) == 1


async def test_a_pull_that_is_given_up_leaves_no_process_and_no_file(
    store: ImageStore, registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add("team/app", BASE, TOP, tag="1")
    registry.faults.append(Stall(BASE.digest, 99, after_bytes=100))
    puller = Puller(store, settings(tmp_path, 1))
    with pytest.raises(RegistryUnavailableError, match="no bytes for 1 s"):
        await puller.pull(f"{registry.host}/team/app:1")
    assert files_of(tmp_path) == []
    pulling = asyncio.create_task(puller.pull(f"{registry.host}/team/app:1"))
    await asyncio.sleep(0.3)
    await puller.close(0)
    with pytest.raises(UnavailableError, match="the server is stopping"):
        await pulling
    assert files_of(tmp_path) == []
    template = next(pid for pid in children_of(os.getpid()) if is_unpacker(pid))
    assert children_of(template) == []


async def test_the_loop_goes_on_while_an_image_comes(
    puller: Puller, registry: FakeRegistry
) -> None:
    noise = random.Random(2).randbytes(24 << 20)
    many = [file(f"d/{number}", noise[number : number + 5000]) for number in range(4000)]
    registry.add("team/big", layer(file("noise", noise)), layer(*many), tag="1")
    loop = asyncio.get_running_loop()
    pulling = asyncio.create_task(puller.pull(f"{registry.host}/team/big:1"))

    def clock_s() -> float:
        """Without what this thread, ready to run, had to wait for a processor."""
        return loop.time() - used_and_waited_s("thread-self")[1]

    late: list[float] = []
    while not pulling.done():
        before = clock_s()
        await asyncio.sleep(0.005)
        late.append(clock_s() - before - 0.005)
    await pulling
    late.sort()
    # The registry, which sends from this same loop, is the slowest thing on it.
    assert late[len(late) // 2] < 0.05


PULL = """
import asyncio, sys
from pathlib import Path
from cri_shim.config.model import ImageSettings
from cri_shim.host.process import Reaper
from cri_shim.image.pull import Puller
from cri_shim.image.store import ImageStore

async def main():
    reaper = Reaper()
    reaper.open()
    place = Path(sys.argv[1])
    store = await ImageStore.open(place / "images", place / "layers", reaper)
    puller = Puller(store, ImageSettings(registry_config=place / "certs.d"))
    print("ready", flush=True)
    while True:
        await puller.pull(sys.argv[2])
        await store.remove(sys.argv[2])

asyncio.run(main())
"""


async def test_pulls_that_were_killed_leave_a_sound_store(
    tmp_path: Path, reaper: Reaper, registry: FakeRegistry
) -> None:
    registry.add("team/app", BASE, MIDDLE, TOP, tag="1")
    name = f"{registry.host}/team/app:1"
    seed = random.Random(7)
    package = str(Path(cri_shim.__file__).parent.parent)
    before = own_children()
    for _ in range(KILLS):
        registry.seen.clear()
        child = reaper.spawn(
            [sys.executable, "-c", PULL, str(tmp_path), name],
            env={"PYTHONPATH": package, "PATH": os.environ["PATH"]},
            cwd=package,
        )
        async with asyncio.timeout(30):
            while not registry.seen:  # noqa: ASYNC110 - that is another process's doing
                await asyncio.sleep(0.005)
        await asyncio.sleep(seed.random() * 0.4)
        child.kill()
        await child.wait()
        store = await ImageStore.open(tmp_path / "images", tmp_path / "layers", reaper)
        try:
            for image in store.images():
                assert len(trees(store, image)) == 3
            await store.sweep()
            image = await Puller(store, settings(tmp_path)).pull(name)
            assert trees(store, image)[2]["bin"][-1] == b"binary" * 50_000
            await store.remove(name)
            assert files_of(tmp_path) == []
        finally:
            await store.close()
    await until_children_are(before)


# A proxy that cuts


class CuttingProxy:
    """Passes on what comes, and closes some of the connections after so many bytes."""

    def __init__(self, target: str, after_bytes: int, times: int) -> None:
        self._target = target
        self._after_bytes = after_bytes
        self._left = times
        self.cuts = 0
        self.host = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._target.rpartition(":")
        to_reader, to_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(
            self._pass(reader, to_writer, None), self._pass(to_reader, writer, self._after_bytes)
        )

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, after: int | None
    ) -> None:
        passed = 0
        try:
            while data := await reader.read(64 << 10):
                passed += len(data)
                writer.write(data)
                await writer.drain()
                if after is not None and passed > after and self._left > 0:
                    self._left -= 1
                    self.cuts += 1
                    return
        except ConnectionError:
            pass  # cut by the other direction
        finally:
            writer.close()


class cutting_proxy:  # noqa: N801 - used as a context, like a function
    """A proxy on a port of its own."""

    def __init__(self, target: str, *, after_bytes: int, times: int) -> None:
        self._proxy = CuttingProxy(target, after_bytes, times)

    async def __aenter__(self) -> CuttingProxy:
        self._server = await asyncio.start_server(self._proxy.serve, "127.0.0.1", 0)
        self._proxy.host = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self._proxy

    async def __aexit__(self, *_: object) -> None:
        self._server.close()


def children_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in children.split()]


def is_unpacker(pid: int) -> bool:
    return b"cri_shim.image.unpack.template_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
