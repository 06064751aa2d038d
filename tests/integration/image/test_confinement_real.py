"""What the process that meets hostile bytes may do: hardly anything."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cri_shim.errors import BadArchiveError, CriShimError, DeadlineError, UnavailableError
from cri_shim.image.manifest import digest_of, parse_config
from cri_shim.image.platforms import platform_of
from cri_shim.image.unpack.client import Unpacker
from cri_shim.image.unpack.document_reader import DocumentReader
from cri_shim.image.unpack.protocol import Limits
from tests.images import (
    Entry,
    config_of,
    device,
    directory,
    file,
    hardlink,
    layer,
    stream,
    symlink,
    tar_of,
    whiteout,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from cri_shim.host.process import Reaper
    from cri_shim.image.planned import PlannedImage

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]
HOST = platform_of(os.uname().machine)
KEPT = {"chown", "dac_override", "fowner", "fsetid", "mknod", "setfcap"}
BITS = {0: "chown", 1: "dac_override", 3: "fowner", 4: "fsetid", 27: "mknod", 31: "setfcap"}


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(each) for each in text.split()]


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def capabilities(mask: str) -> set[str]:
    value = int(mask, 16)
    return {BITS.get(bit, f"bit {bit}") for bit in range(64) if value >> bit & 1}


async def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - another process makes it true
            await asyncio.sleep(0.005)


class Stalled:
    """A job whose input stops half-way, so that its child can be looked at."""

    def __init__(self, unpacker: Unpacker, root: Path) -> None:
        self._unpacker = unpacker
        self._root = root
        self.go_on = asyncio.Event()
        self.task: asyncio.Task[object] | None = None

    async def start(self) -> tuple[int, int]:
        """Begin; the pids of the template and of the child."""
        before = set(children_of(os.getpid()))
        self.task = asyncio.get_running_loop().create_task(self._run())
        made: list[int] = []

        def child() -> list[int]:
            templates = [pid for pid in children_of(os.getpid()) if pid not in before]
            made[:] = [pid for template in templates for pid in (template, *children_of(template))]
            return made[1:] if (self._root / "late").exists() else []

        await until(child)
        return made[0], made[1]

    async def _run(self) -> object:
        data = tar_of([file("early"), directory("d"), file("late", bytes(200_000))])

        async def source() -> AsyncIterator[bytes]:
            yield data[:100_000]
            await self.go_on.wait()
            yield data[100_000:]

        fd = os.open(self._root, os.O_RDONLY)
        try:
            return await self._unpacker.unpack_layer(source(), fd, what="stalled layer")
        finally:
            os.close(fd)


@pytest_asyncio.fixture
async def stalled(unpacker: Unpacker, root: Path) -> AsyncIterator[Stalled]:
    job = Stalled(unpacker, root)
    yield job
    job.go_on.set()
    if job.task is not None:
        await asyncio.wait([job.task])
        if not job.task.cancelled():
            job.task.exception()


async def test_the_child_has_lost_what_it_does_not_need(stalled: Stalled, root: Path) -> None:
    template, child = await stalled.start()
    status = status_of(child)
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert capabilities(status[name]) == KEPT
    assert capabilities(status["CapInh"]) == capabilities(status["CapAmb"]) == set()
    assert status["NoNewPrivs"] == "1"
    for name in ("root", "cwd"):
        assert os.path.samefile(f"/proc/{child}/{name}", root)
    assert status["Seccomp"] == "2"
    networks = {os.readlink(f"/proc/{pid}/ns/net") for pid in ("self", child)}
    assert len(networks) == 2
    assert Path(f"/proc/{child}/net/dev").read_text().count("\n") == 3  # two lines of heading, lo
    limits = Path(f"/proc/{child}/limits").read_text()
    assert f"Max address space         {Limits().memory_bytes}" in limits
    assert "Max core file size        0" in limits
    for pid in (template, child):  # taken before the daemon when memory runs out
        score = Path(f"/proc/{pid}/oom_score_adj").read_text()
        assert int(score) == max(int(Path("/proc/self/oom_score_adj").read_text()), 0)
    assert capabilities(status_of(template)["CapEff"]) == KEPT | {"bit 8", "bit 18"}


async def test_the_child_makes_devices_but_can_open_none(
    unpacker: Unpacker, stalled: Stalled, root: Path, tmp_path: Path
) -> None:
    _, child = await stalled.start()
    os.mknod(root / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    os.close(os.open(root / "null", os.O_RDONLY))  # not by us: by what the child may reach
    with pytest.raises(PermissionError):
        os.open(f"/proc/{child}/root/null", os.O_RDONLY)
    made = tmp_path / "made"
    made.mkdir()
    fd = os.open(made, os.O_RDONLY)
    try:
        devices = tar_of([device("null", 1, 3), file("d/a"), whiteout("d/gone")])
        await unpacker.unpack_layer(stream(devices), fd, what="layer")
    finally:
        os.close(fd)
    assert (made / "null").stat().st_rdev == os.makedev(1, 3)
    assert (made / "d/gone").stat().st_rdev == 0


async def test_the_child_holds_nothing_but_its_job(stalled: Stalled) -> None:
    _, child = await stalled.start()
    descriptors = {
        int(fd): os.readlink(f"/proc/{child}/fd/{fd}") for fd in os.listdir(f"/proc/{child}/fd")
    }
    assert {descriptors.pop(fd) for fd in (0, 1, 2)} == {"/dev/null"}
    kinds = sorted(target.partition(":")[0] for target in descriptors.values())
    # Input and result; the pipe between inflating and unpacking; the file being written.
    assert kinds[1:] == ["pipe", "pipe", "socket", "socket"]
    assert kinds[0].endswith("/late")


async def test_a_cancelled_job_leaves_no_child(stalled: Stalled) -> None:
    template, child = await stalled.start()
    assert stalled.task is not None
    stalled.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stalled.task
    assert child not in children_of(template)


async def test_a_job_beyond_its_deadline_is_given_up(reaper: Reaper, root: Path) -> None:
    unpacker = Unpacker(reaper, timeout_s=1)
    before = set(children_of(os.getpid()))
    data = tar_of([file("late", bytes(200_000))])

    async def source() -> AsyncIterator[bytes]:
        yield data[:100_000]
        # Each piece begins the deadline anew: a child that takes long to begin is not what is meant.
        for offset in range(100_000, len(data)):
            if (root / "late").exists():
                break
            yield data[offset : offset + 1]
            await asyncio.sleep(0.02)
        await asyncio.Event().wait()

    fd = os.open(root, os.O_RDONLY)
    try:
        with pytest.raises(DeadlineError, match=r"took longer than 1 s"):
            await unpacker.unpack_layer(source(), fd, what="layer")
        [template] = set(children_of(os.getpid())) - before
        assert children_of(template) == []
    finally:
        os.close(fd)
        await unpacker.close()
    assert (root / "late").exists()


async def test_a_killed_child_is_an_error_of_its_job_only(
    stalled: Stalled, unpacker: Unpacker, tmp_path: Path
) -> None:
    _, child = await stalled.start()
    os.kill(child, signal.SIGKILL)
    assert stalled.task is not None
    with pytest.raises(BadArchiveError, match="killed by SIGKILL"):
        await stalled.task
    await unpack_a_file(unpacker, tmp_path / "again")


async def test_a_dead_template_takes_its_children_along_and_is_replaced(
    stalled: Stalled, unpacker: Unpacker, tmp_path: Path
) -> None:
    template, child = await stalled.start()
    os.kill(template, signal.SIGKILL)
    assert stalled.task is not None
    with pytest.raises(UnavailableError, match="try again"):
        await stalled.task
    await until(lambda: not Path(f"/proc/{child}").exists())
    await unpack_a_file(unpacker, tmp_path / "again")


async def test_an_error_of_the_stream_is_the_job_s_error(unpacker: Unpacker, root: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield tar_of([file("a", bytes(100_000))])[:50_000]
        raise CriShimError("the upload broke off")

    fd = os.open(root, os.O_RDONLY)
    try:
        with pytest.raises(CriShimError, match="the upload broke off"):
            await unpacker.unpack_layer(broken(), fd, what="layer")
    finally:
        os.close(fd)


async def test_memory_is_bounded(reaper: Reaper, root: Path) -> None:
    unpacker = Unpacker(reaper, limits=Limits(memory_bytes=64 << 20))
    fd = os.open(root, os.O_RDONLY)
    try:
        with pytest.raises(CriShimError):
            await unpacker.unpack_layer(stream(tar_of([file("a")])), fd, what="layer")
    finally:
        os.close(fd)
        await unpacker.close()


async def test_the_template_goes_when_nothing_comes(reaper: Reaper, tmp_path: Path) -> None:
    unpacker = Unpacker(reaper, idle_s=0.1)
    before = children_of(os.getpid())
    await unpack_a_file(unpacker, tmp_path / "one")
    assert len(children_of(os.getpid())) == len(before) + 1
    await until(lambda: len(children_of(os.getpid())) == len(before))
    await unpack_a_file(unpacker, tmp_path / "two")
    await unpacker.close()
    # The reaper collects an ended child a moment after it told of the end.
    await until(lambda: len(children_of(os.getpid())) == len(before))


async def test_the_daemon_s_process_loads_nothing_that_unpacks(reaper: Reaper) -> None:
    program = (
        "import sys, cri_shim.image.store, cri_shim.image.builtin;"
        "print([m for m in ('libarchive', 'isal', 'zstandard', 'grpc') if m in sys.modules])"
    )
    python = [sys.executable, "-c", program]
    done = await reaper.run(python, timeout_s=30, env={"PYTHONPATH": os.getcwd()})
    assert done.stdout == b"[]\n"


async def unpack_a_file(unpacker: Unpacker, root: Path) -> None:
    root.mkdir()
    fd = os.open(root, os.O_RDONLY)
    try:
        await unpacker.unpack_layer(stream(tar_of([file("a", b"x")])), fd, what="layer")
    finally:
        os.close(fd)
    assert (root / "a").read_bytes() == b"x"


async def test_an_archive_s_members_get_names_of_ours(
    unpacker: Unpacker, root: Path, tmp_path: Path
) -> None:
    one, two = layer(file("a", b"1")), layer(file("b", b"2"))
    config = config_of([one, two])
    layers = ["l/sym", "hard"]
    data = tar_of(
        [
            directory("blobs"),
            file("blobs/a", b"first"),
            file("../../escape", config),
            symlink("l/sym", "../blobs/a"),
            hardlink("hard", "blobs/b"),
            file("blobs/a", one.blob),
            file("blobs/b", two.blob),
            file("manifest.json", json.dumps([{"Config": "escape", "Layers": layers}]).encode()),
        ]
    )
    [image] = await spool(unpacker, root, data)
    assert [layer.blob.digest for layer in image.layers] == [one.digest, two.digest]
    assert [layer.file for layer in image.layers] == ["m6", "m7"]
    assert (root / "m6").read_bytes() == one.blob
    assert (root / image.config_document.file).read_bytes() == config
    assert digest_of((root / image.manifest.file).read_bytes()) == image.manifest.digest
    files = sorted(os.listdir(root))
    assert files == [image.manifest.file, "m2", "m3", "m6", "m7", "m8"]
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([device("null", 1, 3)], "neither a file, a directory nor a link"),
        ([directory(f"d{number}") for number in range(10_001)], "more than 10000 entries"),
        ([symlink("a", "x" * 5000)], "target is empty or too long"),
    ],
    ids=["device", "entries", "link"],
)
async def test_what_is_no_image_archive_is_refused(
    unpacker: Unpacker, root: Path, entries: list[Entry], reason: str
) -> None:
    with pytest.raises(BadArchiveError, match=reason):
        await spool(unpacker, root, tar_of(entries))


async def spool(unpacker: Unpacker, root: Path, data: bytes) -> list[PlannedImage]:
    fd = os.open(root, os.O_RDONLY)
    try:
        return await unpacker.spool_archive(stream(data), fd, HOST, what="archive")
    finally:
        os.close(fd)


async def test_a_document_takes_none_of_the_daemon_s_time(
    unpacker: Unpacker, root: Path, tmp_path: Path
) -> None:
    """As dear as one may be: the daemon's own processor time must not show it."""
    (tmp_path / "spool").mkdir()
    labels = {f"l{number}": "x" * 20 for number in range(99_900)}
    document = {"config": {"Labels": labels}, "rootfs": {"diff_ids": []}, "os": HOST.os}
    data = json.dumps(document, separators=(",", ":")).encode()
    began = time.process_time()
    parse_config(data, "here")
    here = time.process_time() - began
    fds = [os.open(directory, os.O_RDONLY) for directory in (tmp_path / "spool", root)]
    try:
        reader = DocumentReader(unpacker, HOST, *fds)
        kept = await reader.keep(data)
        await reader.config(kept, "config")  # the template is there from now on
        began = time.process_time()
        assert (await reader.config(kept, "config")).diff_ids == ()
        assert time.process_time() - began < here / 4
        with pytest.raises(BadArchiveError, match=r"^config: more than 100000 values"):
            await reader.config(await reader.keep(b"[" * 100_001), "config")
        with pytest.raises(BadArchiveError, match=r"^manifest: .*none of"):
            await reader.manifest(await reader.keep(b'{"schemaVersion":2}'), "manifest")
    finally:
        for fd in fds:
            os.close(fd)
    assert os.listdir(root) == []
