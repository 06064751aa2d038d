"""Understanding image archives: which images are in one, under which names, made of which members.

Rules: the archive's bytes were spooled and hashed by a confined child; here only documents are read, within their
bounds, and each is checked against the digest that refers to it. Names in an archive are its maker's wish: they are
parsed like any reference, and those of the built-in images are refused.

Understood: OCI image layouts (at the root of the tar or in its one directory), `docker save` in the old form
(`manifest.json`) and the new one (an OCI layout besides), also with layers shared by links.
"""

from __future__ import annotations

import os
import posixpath
import stat
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from cri_shim.errors import BadArchiveError, BadImageReferenceError
from cri_shim.image.arrival import PlannedImage, PlannedLayer, checked_config
from cri_shim.image.document import decode_document
from cri_shim.image.manifest import (
    MANIFEST_TYPES,
    MAX_CONFIG_BYTES,
    MAX_LAYERS,
    MAX_MANIFEST_BYTES,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    REF_NAME,
    Descriptor,
    Index,
    Manifest,
    Platform,
    check_platform,
    choose_manifest,
    digest_of,
    is_candidate,
    parse_config,
    parse_document,
)
from cri_shim.image.model import ImportProgress
from cri_shim.image.reference import RESERVED_DOMAIN, Reference, parse_reference
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cri_shim.image.blobs import BlobStore
    from cri_shim.image.jobs import LayerReport, Member
    from cri_shim.image.manifest import Platform
    from cri_shim.image.unpack import Unpacker

    Tell = Callable[[ImportProgress], None]

CONTAINERD_NAME = "io.containerd.image.name"
_MAX_DEPTH = 4
"""An index in an index in an index is still meant; more is a puzzle."""
_MAX_LINKS = 8


class _DockerEntry(msgspec.Struct, frozen=True):
    config: str = msgspec.field(name="Config")
    layers: list[str] = msgspec.field(name="Layers")
    repo_tags: list[str] | None = msgspec.field(default=None, name="RepoTags")


class Archive:
    """A spooled archive: its members, and the directory that has their bytes."""

    def __init__(self, members: Sequence[Member], directory_fd: int, platform: Platform) -> None:
        self._directory_fd = directory_fd
        self._platform = platform
        prefix = _common_directory(members)
        self._members = {
            os.fsdecode(member.name).removeprefix(prefix): member for member in members
        }
        self._prefix = prefix

    def images(self) -> list[PlannedImage]:
        """Every image for this machine. Raises BadArchiveError saying what is wrong, or missing."""
        if "index.json" in self._members:
            planned = self._oci_images()
        elif "manifest.json" in self._members:
            planned = self._docker_images()
        elif "repositories" in self._members:
            raise BadArchiveError(
                "a `docker save` archive from before Docker 1.10: load and save it with a newer one"
            )
        else:
            raise BadArchiveError(
                "neither an OCI layout (index.json) nor a `docker save` archive (manifest.json)"
            )
        if not planned:
            raise BadArchiveError("there is no image in it")
        return planned

    # OCI layouts

    def _oci_images(self) -> list[PlannedImage]:
        top = parse_document(self._document("index.json", MAX_MANIFEST_BYTES), "index.json")
        if not isinstance(top, Index):
            raise BadArchiveError("index.json: a manifest, where an index belongs")
        entries = [entry for entry in top.manifests if is_candidate(entry, self._platform)]
        if not entries and top.manifests:
            choose_manifest(top, self._platform, "index.json")
        by_manifest: dict[str, PlannedImage] = {}
        for entry in entries:
            planned = self._resolve(entry, 0)
            names = dict.fromkeys(_names_of(entry))
            known = by_manifest.get(digest_of(planned.manifest))
            if known is not None:
                names = dict.fromkeys([*known.names, *names])
            by_manifest[digest_of(planned.manifest)] = replace(planned, names=tuple(names))
        return list(by_manifest.values())

    def _resolve(self, entry: Descriptor, depth: int) -> PlannedImage:
        if depth > _MAX_DEPTH:
            raise BadArchiveError(f"{entry.digest}: indexes within indexes, {depth} deep")
        data = self._blob(entry, MAX_MANIFEST_BYTES)
        document = parse_document(data, f"manifest {entry.digest}")
        if isinstance(document, Index):
            return self._resolve(
                choose_manifest(document, self._platform, f"index {entry.digest}"), depth + 1
            )
        return self._from_manifest(data, document, entry)

    def _from_manifest(self, data: bytes, manifest: Manifest, entry: Descriptor) -> PlannedImage:
        config_bytes = self._blob(manifest.config, MAX_CONFIG_BYTES)
        config = checked_config(config_bytes, manifest, self._platform)
        layers = []
        for diff_id, blob in zip(config.diff_ids, manifest.layers, strict=True):
            member = self._checked(blob)
            layers.append(PlannedLayer(diff_id, blob, member.file))
        media_type = manifest.media_type or (
            entry.media_type if entry.media_type in MANIFEST_TYPES else OCI_MANIFEST
        )
        return PlannedImage((), data, media_type, config, config_bytes, tuple(layers), True)

    # docker save

    def _docker_images(self) -> list[PlannedImage]:
        data = self._document("manifest.json", MAX_MANIFEST_BYTES)
        entries = decode_document(data, list[_DockerEntry], "manifest.json", MAX_MANIFEST_BYTES)
        return [self._docker_image(entry) for entry in entries]

    def _docker_image(self, entry: _DockerEntry) -> PlannedImage:
        config_bytes = self._document(entry.config, MAX_CONFIG_BYTES)
        config = parse_config(config_bytes, entry.config)
        check_platform(config, self._platform, entry.config)
        if len(config.diff_ids) != len(entry.layers) or len(entry.layers) > MAX_LAYERS:
            raise BadArchiveError(
                f"{entry.config}: {len(config.diff_ids)} diff ids, but manifest.json has {len(entry.layers)} layers"
            )
        layers = []
        for diff_id, name in zip(config.diff_ids, entry.layers, strict=True):
            member = self._member(name)
            blob = Descriptor(
                media_type=self._layer_type(member), digest=member.digest, size=member.size
            )
            layers.append(PlannedLayer(diff_id, blob, member.file))
        manifest = Manifest(
            schema_version=2,
            media_type=OCI_MANIFEST,
            config=Descriptor(
                media_type=OCI_CONFIG, digest=digest_of(config_bytes), size=len(config_bytes)
            ),
            layers=[layer.blob for layer in layers],
        )
        names = tuple(_parse_name(tag) for tag in entry.repo_tags or ())
        return PlannedImage(
            names,
            msgspec.json.encode(manifest),
            OCI_MANIFEST,
            config,
            config_bytes,
            tuple(layers),
            False,
        )

    def _layer_type(self, member: Member) -> str:
        head = self._read(member, 4)
        if head[:2] == b"\x1f\x8b":
            return f"{OCI_LAYER}+gzip"
        return f"{OCI_LAYER}+zstd" if head == b"\x28\xb5\x2f\xfd" else OCI_LAYER

    # Members

    def _member(self, name: str) -> Member:
        """The file of that name, links followed as names. Raises BadArchiveError."""
        wanted = posixpath.normpath(name)
        for _ in range(_MAX_LINKS):
            member = self._members.get(wanted)
            if member is None:
                break
            if member.file:
                return member
            wanted = os.fsdecode(member.target).removeprefix(self._prefix)
        raise BadArchiveError(f"{name}: not in the archive")

    def _checked(self, descriptor: Descriptor) -> Member:
        member = self._member("blobs/" + descriptor.digest.replace(":", "/"))
        if member.digest != descriptor.digest:
            raise BadArchiveError(f"blob {descriptor.digest}: its bytes have {member.digest}")
        if member.size != descriptor.size:
            raise BadArchiveError(
                f"blob {descriptor.digest}: {member.size} bytes, where {descriptor.size} were promised"
            )
        return member

    def _blob(self, descriptor: Descriptor, max_bytes: int) -> bytes:
        data = self._read_whole(self._checked(descriptor), descriptor.digest, max_bytes)
        if digest_of(data) != descriptor.digest:
            raise BadArchiveError(f"blob {descriptor.digest}: its bytes have {digest_of(data)}")
        return data

    def _document(self, name: str, max_bytes: int) -> bytes:
        return self._read_whole(self._member(name), name, max_bytes)

    def _read_whole(self, member: Member, what: str, max_bytes: int) -> bytes:
        if member.size > max_bytes:
            raise BadArchiveError(f"{what}: {member.size} bytes; at most {max_bytes} are read")
        return self._read(member, max_bytes)

    def _read(self, member: Member, max_bytes: int) -> bytes:
        fd = open_spooled(self._directory_fd, member.file)
        try:
            return os.pread(fd, max_bytes, 0)
        finally:
            os.close(fd)


def open_spooled(directory_fd: int, file: str) -> int:
    """A spooled file, for reading. Raises BadArchiveError if the child left anything but a plain file there."""
    if not file.isalnum():
        raise BadArchiveError(f"a spooled file with the name {quoted(file)}")
    # The name is followed in a directory that a child could write to, so nothing but a file is opened.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(file, flags, dir_fd=directory_fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise BadArchiveError(f"spooled file {file}: not a plain file")
    return fd


class ArchiveFeed:
    """The layers of a spooled archive (`arrival.Feed`)."""

    def __init__(
        self, unpacker: Unpacker, spool_fd: int, planned: Sequence[PlannedImage], tell: Tell
    ) -> None:
        """`tell` hears of the archive's arrival and of each layer."""
        self._unpacker = unpacker
        self._spool_fd = spool_fd
        self._tell = tell
        self._total = sum(len(image.layers) for image in planned)
        self._done = 0
        names = [str(name) for image in planned for name in image.names[:1]]
        self._what = ", ".join(names) or "image archive"
        tell(ImportProgress("received", self._what, 0, self._total))

    async def unpack(self, layer: PlannedLayer, directory_fd: int) -> LayerReport:
        """From the spooled file."""
        fd = open_spooled(self._spool_fd, layer.file)
        try:
            return await self._unpacker.unpack_layer(
                fd, directory_fd, what=f"layer {layer.diff_id}"
            )
        finally:
            os.close(fd)

    def placed(self, layer: PlannedLayer) -> None:
        """One more."""
        self._done += 1
        self._tell(ImportProgress("layer", self._what, self._done, self._total))

    def put_away(self, layer: PlannedLayer, blobs: BlobStore) -> None:
        """The spooled file becomes the blob."""
        blobs.adopt(self._spool_fd, layer.file, layer.blob.digest)


def _common_directory(members: Sequence[Member]) -> str:
    """`dir/` when the layout is not at the root but in the one directory of the tar; else nothing."""
    names = [os.fsdecode(member.name) for member in members]
    if any(name in ("index.json", "manifest.json") for name in names):
        return ""
    tops = {name.partition("/")[0] for name in names}
    return tops.pop() + "/" if len(tops) == 1 else ""


def _names_of(entry: Descriptor) -> list[Reference]:
    """What the maker called it. A bare tag (`1.0`) is no name: it says nothing about the repository."""
    for key in (CONTAINERD_NAME, REF_NAME):
        name = entry.annotations.get(key, "")
        if name and ("/" in name or ":" in name or key == CONTAINERD_NAME):
            return [_parse_name(name)]
    return []


def _parse_name(name: str) -> Reference:
    try:
        return parse_reference(name)
    except BadImageReferenceError as error:
        raise BadArchiveError(f"the archive's name for its image: {error}") from error


def with_names(planned: Sequence[PlannedImage], reference: Reference | None) -> list[PlannedImage]:
    """What the images shall be called: as the caller says, else as the archive says.

    A caller is trusted with any name; an archive is not: it could replace the pause image of every pod.
    """
    if reference is not None:
        if len(planned) != 1:
            raise BadArchiveError(
                f"the name {reference} is for one image, but the archive has {len(planned)}"
            )
        return [replace(planned[0], names=(reference,))]
    for image in planned:
        for name in image.names:
            if name.domain == RESERVED_DOMAIN:
                raise BadArchiveError(
                    f"{name}: names of {RESERVED_DOMAIN} are the built-in images'"
                )
            if name.tag is None:
                raise BadArchiveError(
                    f"{name}: an archive can't give an image a digest as its name"
                )
    return list(planned)
