"""What tests of pulls look at: settings of a puller, the trees that came out, what was left behind."""

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.config.model import ImageSettings
from tests.images import stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cri_shim.image.model import Image
    from cri_shim.image.store import ImageStore


def settings(root: Path, stall_s: float = 20.0) -> ImageSettings:
    return ImageSettings(registry_config=root / "certs.d", pull_progress_timeout_s=stall_s)  # type: ignore[arg-type]


async def bring(store: ImageStore, archive: bytes, name: str | None = None) -> Image:
    """Import an archive of one image."""
    [image] = await store.import_archive(stream(archive), name)
    return image


def facts(top: Path) -> dict[str, tuple[object, ...]]:
    """Everything of a tree that an image says something about."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [top, *sorted(top.rglob("*"))]:
        info = path.lstat()
        content: object = None
        is_whiteout = stat.S_ISCHR(info.st_mode) and info.st_rdev == 0
        if stat.S_ISREG(info.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(info.st_mode):
            content = os.readlink(path)
        found[str(path.relative_to(top))] = (
            *(info.st_mode, info.st_uid, info.st_gid, info.st_nlink, info.st_rdev),
            0 if path == top or is_whiteout else info.st_mtime_ns,
            {n: os.getxattr(path, n, follow_symlinks=False) for n in xattrs(path)},
            content,
        )
    return found


def xattrs(path: Path) -> list[str]:
    return [] if path.is_symlink() else sorted(os.listxattr(path))


def trees(store: ImageStore, image: Image) -> list[dict[str, tuple[object, ...]]]:
    stack = store.layer_stack(image)
    return [facts(stack.layers_dir / name) for name in stack.lowers]


def files_of(tree: Path) -> list[Path]:
    """What a pull may leave: nothing but the store's two own files."""
    kept = {"index.json", "oci-layout"}
    found = [p for d in ("images", "layers") for p in (tree / d).rglob("*") if not p.is_dir()]
    return [path for path in found if path.name not in kept]


def hosts(root: Path, domain: str, text: str) -> None:
    """Write the `hosts.toml` of a registry, where `settings` has it looked for."""
    directory = root / "certs.d" / domain
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "hosts.toml").write_text(text)


@contextmanager
def case(what: object) -> Iterator[None]:
    """One of many cases of a test; a failure names it."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"in the case: {what!r:.300}")
        raise


def own_children() -> set[str]:
    """The pids of this process's children, zombies among them."""
    return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())


async def until_children_are(known: set[str]) -> None:
    """Wait for orphans: an unpacker process that lost its daemon is ours now, and ends as soon as it notices."""
    async with asyncio.timeout(10):
        while not own_children() <= known:  # noqa: ASYNC110 - other processes make it true
            await asyncio.sleep(0.01)
