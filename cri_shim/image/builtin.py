"""The images that need no registry: the pause image, made from catatonit, and the demo image, from busybox-static.

Rules: each is built in memory as an ordinary OCI archive and imported like any other. The same program gives the same
bytes, and so the same image ID. The image has every directory that containers get mounts on, so that a mount never has
to create one in its root file system.
"""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cri_shim.errors import CriShimError
from cri_shim.host.files import read_bounded
from cri_shim.image.manifest import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    REF_NAME,
    Descriptor,
    Index,
    Manifest,
    digest_of,
)
from cri_shim.image.platforms import platform_of
from cri_shim.image.reference import RESERVED_DOMAIN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

PAUSE_REFERENCE = f"{RESERVED_DOMAIN}/pause:1"
BUSYBOX_REFERENCE = "localhost/cri-shim-demo:1"
CATATONIT = Path("/usr/bin/catatonit")
BUSYBOX = Path("/bin/busybox")
_MAX_PROGRAM_BYTES = 64 << 20
_CHUNK_BYTES = 256 << 10
_MOUNT_POINTS = ("dev", "etc", "proc", "root", "run", "sys", "tmp", "var", "var/run")
_ELF_INTERPRETER = 3
"""PT_INTERP: a program with such a header needs a dynamic linker, which these images lack."""

BUSYBOX_APPLETS = (
    *("[", "awk", "base64", "basename", "cat", "chmod", "chown", "cp", "cut", "date", "dd", "df"),
    *("dirname", "dmesg", "du", "echo", "env", "expr", "false", "find", "free", "grep", "gzip"),
    *("head", "hostname", "httpd", "id", "ifconfig", "ip", "kill", "killall", "less", "ln", "ls"),
    *("md5sum", "mkdir", "mkfifo", "mknod", "mktemp", "mount", "mv", "nc", "netstat", "nproc"),
    *("nslookup", "od", "pidof", "ping", "printf", "ps", "pwd", "readlink", "realpath", "rm"),
    *("rmdir", "route", "sed", "seq", "sh", "sha256sum", "sleep", "sort", "stat", "stty", "su"),
    *("sync", "tail", "tar", "tee", "test", "time", "timeout", "top", "touch", "tr", "true", "tty"),
    *("umount", "uname", "uniq", "uptime", "usleep", "vi", "watch", "wc", "wget", "which"),
    *("whoami", "xargs", "yes"),
)


async def pause_archive() -> AsyncIterator[bytes]:
    """The archive of the pause image. Raises CriShimError, which names the package, when catatonit is missing."""
    program = _read_program(CATATONIT, "catatonit")
    layer = _layer({"catatonit": program}, {})
    archive = _archive(layer, PAUSE_REFERENCE, entrypoint=("/catatonit", "-P"), cmd=())
    for start in range(0, len(archive), _CHUNK_BYTES):
        yield archive[start : start + _CHUNK_BYTES]


def busybox_archive(reference: str = BUSYBOX_REFERENCE) -> bytes:
    """The archive of an image with busybox and its applets, named `reference`.

    Raises CriShimError, which names the package, when a static busybox is missing.
    """
    program = _read_program(BUSYBOX, "busybox-static")
    # Hard links: a mount over one name hides that name only, where a symbolic link's target would hide them all.
    links = {f"bin/{applet}": "bin/busybox" for applet in BUSYBOX_APPLETS}
    links["usr/bin/env"] = "bin/busybox"
    texts = {
        "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        "etc/group": b"root:x:0:\nnogroup:x:65534:\n",
    }
    layer = _layer({"bin/busybox": program}, links, texts=texts)
    return _archive(layer, reference, entrypoint=(), cmd=("sh",))


def _read_program(path: Path, package: str) -> bytes:
    try:
        program = read_bounded(path, _MAX_PROGRAM_BYTES)
    except OSError as error:
        raise CriShimError(
            f"a built-in image needs {path}: {error.strerror}; install the package {package}"
        ) from error
    if is_dynamic(program):
        raise CriShimError(f"{path} is not a static program; install the package {package}")
    return program


def is_dynamic(program: bytes) -> bool:
    """Whether an ELF program needs a dynamic linker; False for a file that is not ELF."""
    if program[:4] != b"\x7fELF" or len(program) < 64:
        return False
    wide = program[4] == 2
    order = "little" if program[5] == 1 else "big"

    def number(offset: int, size: int) -> int:
        return int.from_bytes(program[offset : offset + size], order)  # type: ignore[arg-type]

    start = number(32, 8) if wide else number(28, 4)
    size, count = (number(54, 2), number(56, 2)) if wide else (number(42, 2), number(44, 2))
    return any(number(start + i * size, 4) == _ELF_INTERPRETER for i in range(count))


def _layer(
    programs: Mapping[str, bytes],
    links: Mapping[str, str],
    *,
    texts: Mapping[str, bytes] | None = None,
) -> bytes:
    """A tar with these files, hard links to them, and the mount points."""
    files = {**programs, **(texts or {})}
    directories = set(_MOUNT_POINTS)
    for path in (*files, *links):
        directories.update(str(parent) for parent in Path(path).parents if str(parent) != ".")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for directory in sorted(directories):
            header = tarfile.TarInfo(directory)
            header.type = tarfile.DIRTYPE
            header.mode = 0o1777 if directory == "tmp" else 0o755
            tar.addfile(header)
        for path, data in files.items():
            header = tarfile.TarInfo(path)
            header.size = len(data)
            header.mode = 0o755 if path in programs else 0o644
            tar.addfile(header, io.BytesIO(data))
        for path, target in sorted(links.items()):
            header = tarfile.TarInfo(path)
            header.type = tarfile.LNKTYPE
            header.linkname = target
            header.mode = 0o755
            tar.addfile(header)
    return stream.getvalue()


def _archive(
    layer: bytes, reference: str, *, entrypoint: Sequence[str], cmd: Sequence[str]
) -> bytes:
    """An OCI archive of one image with one layer. Every time in it is zero, for the same bytes each time."""
    platform = platform_of(os.uname().machine)
    config = msgspec.json.encode(
        {
            "created": "1970-01-01T00:00:00Z",
            "os": platform.os,
            "architecture": platform.architecture,
            **({"variant": platform.variant} if platform.variant else {}),
            "config": {
                "Entrypoint": list(entrypoint),
                "Cmd": list(cmd),
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer)]},
        }
    )
    manifest = msgspec.json.encode(
        Manifest(
            schema_version=2,
            media_type=OCI_MANIFEST,
            config=_descriptor(OCI_CONFIG, config),
            layers=[_descriptor(OCI_LAYER, layer)],
        )
    )
    named = msgspec.structs.replace(
        _descriptor(OCI_MANIFEST, manifest), annotations={REF_NAME: reference}
    )
    index = msgspec.json.encode(Index(schema_version=2, media_type=OCI_INDEX, manifests=[named]))
    members = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index}
    for blob in (manifest, config, layer):
        members["blobs/" + digest_of(blob).replace(":", "/")] = blob
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return stream.getvalue()


def _descriptor(media_type: str, data: bytes) -> Descriptor:
    return Descriptor(media_type=media_type, digest=digest_of(data), size=len(data))
