"""An image as a volume: the layers to mount, and a sub path that never leaves the volume.

Rules:
- The layers are mounted as a read-only overlay, even a single one: only overlayfs hides what a whiteout hides. A
  read-only overlay needs two lower directories, so empty ones fill in.
- The mounting container's record keeps the layers' names, so that they count as in use.
- The sub path comes from the request, and the links on its way from the image. The kernel resolves it with the mounted
  volume as `/`, so neither `..` nor a link leads out. The result is an O_PATH descriptor, and that is what is mounted.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.errors import InvalidArgumentError, NotFoundError
from cri_shim.host.files import open_in_root
from cri_shim.image.model import EMPTY_DIR, EMPTY_LAYER
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.image.model import Image, LayerStack

_STAND_INS = (EMPTY_LAYER, f"{EMPTY_DIR}/1")
_MAX_SUB_PATH_BYTES = 4096


@dataclass(frozen=True, slots=True)
class ImageVolume:
    """The arguments of a read-only mount of an image."""

    image: Image
    layers_dir: Path
    lowers: tuple[str, ...]
    """Directories below `layers_dir`, topmost first, at least two: `mount_overlay` without `upper` takes them."""
    layers: tuple[str, ...]
    """The image's own among them: the names for the container's record."""
    sub_path: str
    """Relative to the volume, checked as text; empty for the whole volume."""


def image_volume(image: Image, stack: LayerStack, sub_path: str) -> ImageVolume:
    """The volume of `image`, whose layers are `stack`; creates the empty directories it needs. Blocking.

    Raises InvalidArgumentError for an invalid sub path, OSError.
    """
    checked = check_sub_path(sub_path)
    missing = max(0, 2 - len(stack.lowers))
    added = [name for name in _STAND_INS if name not in stack.lowers][:missing]
    for name in added:
        (stack.layers_dir / name).mkdir(mode=0o755, parents=True, exist_ok=True)
    lowers = (*stack.lowers, *added)
    return ImageVolume(image, stack.layers_dir, lowers, stack.lowers, checked)


def check_sub_path(sub_path: str) -> str:
    """`sub_path` without empty and `.` components. Raises InvalidArgumentError."""
    if "\0" in sub_path or len(os.fsencode(sub_path)) >= _MAX_SUB_PATH_BYTES:
        raise InvalidArgumentError(f"image_sub_path {quoted(sub_path)}: not a path")
    if sub_path.startswith("/"):
        raise InvalidArgumentError(
            f"image_sub_path {quoted(sub_path)}: it must be relative to the image's root"
        )
    parts = [part for part in sub_path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidArgumentError(f"image_sub_path {quoted(sub_path)}: it must not contain '..'")
    return "/".join(parts)


def open_sub_path(mounted: Path, volume: ImageVolume) -> int:
    """An O_PATH descriptor of the sub path in the volume mounted at `mounted`. The caller closes it.

    Links on the way are resolved inside the volume. Bind-mount `/proc/self/fd/N`. Blocking.
    Raises NotFoundError with image and path, InvalidArgumentError for neither a directory nor a file, OSError.
    """
    what = f"image {volume.image.name}: image_sub_path {quoted(volume.sub_path)}"
    try:
        fd = open_in_root(mounted, volume.sub_path or ".", os.O_PATH)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(
            "image_sub_path", volume.sub_path, f"image {volume.image.name} has no such path"
        ) from error
    except OSError as error:
        # These two are the image's or the request's fault, all others the node's.
        if error.errno not in (errno.ELOOP, errno.ENAMETOOLONG):
            raise
        raise InvalidArgumentError(f"{what}: {error.strerror}") from error
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        os.close(fd)
        raise InvalidArgumentError(f"{what}: neither a directory nor a file")
    return fd
