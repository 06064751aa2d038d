"""Read image archives: which images an archive has, their names, and the members that make them up.

Rules: this runs in the confined child that spooled and hashed the members. Documents are bounded, read once however
many refer to them, and checked against the digest that refers to them. The number of images per archive is bounded.
Names in an archive are its author's, and are parsed like any reference.

Supported: OCI image layouts, at the root of the tar or in its only directory; `docker save` in the old form
(`manifest.json`) and the new one (an OCI layout as well), also with layers shared by links.
"""

from __future__ import annotations

import os
import posixpath
from typing import TYPE_CHECKING

import msgspec

from cri_shim.errors import BadArchiveError, BadImageReferenceError
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
    digest_of,
    kept_annotations,
    parse_config,
    parse_document,
)
from cri_shim.image.planned import PlannedDocument, PlannedImage, PlannedLayer
from cri_shim.image.platforms import (
    check_config,
    check_platform,
    choose_manifest,
    is_candidate,
    names_machine,
)
from cri_shim.image.reference import Reference, parse_reference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cri_shim.image.manifest import ImageConfig
    from cri_shim.image.unpack.members import Member

CONTAINERD_NAME = "io.containerd.image.name"
MAX_IMAGES = 512
"""Per archive, counting the entries of its list. Archives that set up a whole platform have some hundreds."""
MAX_NAMES = 1024
"""Names of all images of one archive."""
_MAX_DEPTH = 4
"""Indexes within indexes. Real images nest two or three."""
_MAX_LINKS = 8


class _DockerEntry(msgspec.Struct, frozen=True):
    config: str = msgspec.field(name="Config")
    layers: list[str] = msgspec.field(default_factory=list, name="Layers")
    repo_tags: list[str] = msgspec.field(default_factory=list, name="RepoTags")


class Archive:
    """A spooled archive: its members, and the directory with their bytes."""

    def __init__(self, members: Sequence[Member], directory_fd: int, platform: Platform) -> None:
        self._directory_fd = directory_fd
        self._platform = platform
        prefix = _common_directory(members)
        self._members = {
            os.fsdecode(member.name).removeprefix(prefix): member for member in members
        }
        self._prefix = prefix
        self._manifests: dict[str, tuple[Manifest | Index, PlannedDocument]] = {}
        self._configs: dict[str, ImageConfig] = {}

    def images(self) -> list[PlannedImage]:
        """Every image for this platform. Raises BadArchiveError, which says what is wrong or missing."""
        if "index.json" in self._members:
            planned = self._oci_images()
        elif "manifest.json" in self._members:
            planned = self._docker_images()
        elif "repositories" in self._members:
            raise BadArchiveError(
                "the archive is a `docker save` from before Docker 1.10: load and save it with a newer Docker"
            )
        else:
            raise BadArchiveError(
                "the archive is neither an OCI layout (no index.json) nor a `docker save` (no manifest.json)"
            )
        if not planned:
            raise BadArchiveError("the archive has no image")
        if (count := sum(len(image.names) for image in planned)) > MAX_NAMES:
            raise BadArchiveError(f"the archive has {count} image names; the limit is {MAX_NAMES}")
        return planned

    # OCI layouts

    def _oci_images(self) -> list[PlannedImage]:
        top = parse_document(self._document("index.json", MAX_MANIFEST_BYTES), "index.json")
        if not isinstance(top, Index):
            raise BadArchiveError("index.json: it is a manifest, not an index")
        entries = [entry for entry in top.manifests if is_candidate(entry, self._platform)]
        if not entries and top.manifests:
            # Raises the error that lists the platforms the index does have.
            choose_manifest(top, self._platform, "index.json")
        _check_count(len(entries))
        names: dict[str, dict[Reference, None]] = {}
        by_manifest: dict[str, PlannedImage] = {}
        for entry in entries:
            manifest, document, chosen = self._resolve(entry, 0, names_machine(entry))
            if document.digest not in by_manifest:
                planned = self._from_manifest(manifest, document, entry, chosen)
                by_manifest[document.digest] = planned
            names.setdefault(document.digest, {}).update(dict.fromkeys(_names_of(entry)))
        return [
            msgspec.structs.replace(image, names=tuple(names[digest]))
            for digest, image in by_manifest.items()
        ]

    def _resolve(
        self, entry: Descriptor, depth: int, chosen: bool
    ) -> tuple[Manifest, PlannedDocument, bool]:
        """Follow an entry to its manifest. `chosen`: an index has listed it for this platform."""
        if depth > _MAX_DEPTH:
            raise BadArchiveError(f"{entry.digest}: indexes within indexes, {depth} deep")
        document, where = self._manifest(entry)
        if isinstance(document, Index):
            inner = choose_manifest(document, self._platform, f"index {entry.digest}")
            return self._resolve(inner, depth + 1, chosen or names_machine(inner))
        return document, where, chosen

    def _manifest(self, entry: Descriptor) -> tuple[Manifest | Index, PlannedDocument]:
        known = self._manifests.get(entry.digest)
        if known is None:
            data, file = self._blob(entry, MAX_MANIFEST_BYTES)
            document = parse_document(data, f"manifest {entry.digest}")
            known = document, PlannedDocument(entry.digest, len(data), file)
            self._manifests[entry.digest] = known
        return known

    def _from_manifest(
        self, manifest: Manifest, document: PlannedDocument, entry: Descriptor, chosen: bool
    ) -> PlannedImage:
        config_document, config = self._config(manifest, chosen)
        layers = []
        for diff_id, blob in zip(config.diff_ids, manifest.layers, strict=True):
            file = self._checked(blob).file
            layers.append(PlannedLayer(diff_id, blob.bare(), file))
        media_type = manifest.media_type or (
            entry.media_type if entry.media_type in MANIFEST_TYPES else OCI_MANIFEST
        )
        return PlannedImage(
            names=(),
            manifest=document,
            manifest_type=media_type,
            annotations=kept_annotations(manifest.annotations),
            config_document=config_document,
            config=config,
            layers=tuple(layers),
            by_digest=True,
        )

    def _config(self, manifest: Manifest, chosen: bool) -> tuple[PlannedDocument, ImageConfig]:
        digest = manifest.config.digest
        member = self._checked(manifest.config)
        config = self._configs.get(digest)
        if config is None:
            data, _ = self._blob(manifest.config, MAX_CONFIG_BYTES)
            config = self._configs[digest] = parse_config(data, f"image config {digest}")
        check_config(config, manifest, self._platform, chosen=chosen)
        return PlannedDocument(digest, member.size, member.file), config

    # docker save

    def _docker_images(self) -> list[PlannedImage]:
        data = self._document("manifest.json", MAX_MANIFEST_BYTES)
        entries = decode_document(data, list[_DockerEntry], "manifest.json", MAX_MANIFEST_BYTES)
        _check_count(len(entries))
        return [self._docker_image(entry) for entry in entries]

    def _docker_image(self, entry: _DockerEntry) -> PlannedImage:
        config_bytes = self._document(entry.config, MAX_CONFIG_BYTES)
        config = parse_config(config_bytes, entry.config)
        check_platform(config, self._platform, entry.config)
        if len(config.diff_ids) != len(entry.layers) or len(entry.layers) > MAX_LAYERS:
            raise BadArchiveError(
                f"{entry.config}: the configuration has {len(config.diff_ids)} diff IDs, manifest.json "
                f"{len(entry.layers)} layers"
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
        return PlannedImage(
            names=tuple(_parse_name(tag) for tag in entry.repo_tags),
            manifest=self._made(msgspec.json.encode(manifest)),
            manifest_type=OCI_MANIFEST,
            annotations={},
            config_document=PlannedDocument(
                manifest.config.digest, manifest.config.size, self._member(entry.config).file
            ),
            config=config,
            layers=tuple(layers),
            by_digest=False,
        )

    def _made(self, manifest: bytes) -> PlannedDocument:
        """Store a manifest that we generated among the archive's files."""
        digest = digest_of(manifest)
        file = "d" + digest.removeprefix("sha256:")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(file, flags, 0o600, dir_fd=self._directory_fd), "wb") as stream:
            stream.write(manifest)
        return PlannedDocument(digest, len(manifest), file)

    def _layer_type(self, member: Member) -> str:
        head = self._read(member, 4)
        if head[:2] == b"\x1f\x8b":
            return f"{OCI_LAYER}+gzip"
        return f"{OCI_LAYER}+zstd" if head == b"\x28\xb5\x2f\xfd" else OCI_LAYER

    # Members

    def _member(self, name: str) -> Member:
        """The regular file with that name; links are followed by name. Raises BadArchiveError."""
        wanted = posixpath.normpath(name)
        for _ in range(_MAX_LINKS):
            member = self._members.get(wanted)
            if member is None:
                break
            if member.file:
                return member
            wanted = os.fsdecode(member.target).removeprefix(self._prefix)
        raise BadArchiveError(f"{name}: not in the archive, or a link that leads nowhere")

    def _checked(self, descriptor: Descriptor) -> Member:
        member = self._member("blobs/" + descriptor.digest.replace(":", "/"))
        if member.digest != descriptor.digest:
            raise BadArchiveError(
                f"blob {descriptor.digest}: its bytes have the digest {member.digest}"
            )
        if member.size != descriptor.size:
            raise BadArchiveError(
                f"blob {descriptor.digest}: it has {member.size} bytes, its descriptor states {descriptor.size}"
            )
        return member

    def _blob(self, descriptor: Descriptor, max_bytes: int) -> tuple[bytes, str]:
        """The blob's bytes, and the name of its file."""
        member = self._checked(descriptor)
        return self._read_whole(member, descriptor.digest, max_bytes), member.file

    def _document(self, name: str, max_bytes: int) -> bytes:
        return self._read_whole(self._member(name), name, max_bytes)

    def _read_whole(self, member: Member, what: str, max_bytes: int) -> bytes:
        if member.size > max_bytes:
            raise BadArchiveError(f"{what}: it has {member.size} bytes; the limit is {max_bytes}")
        return self._read(member, max_bytes)

    def _read(self, member: Member, max_bytes: int) -> bytes:
        fd = os.open(member.file, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._directory_fd)
        try:
            return os.pread(fd, max_bytes, 0)
        finally:
            os.close(fd)


def _common_directory(members: Sequence[Member]) -> str:
    """`dir/` if the layout is in the only directory of the tar; empty if it is at the root."""
    names = [os.fsdecode(member.name) for member in members]
    if any(name in ("index.json", "manifest.json") for name in names):
        return ""
    tops = {name.partition("/")[0] for name in names}
    return tops.pop() + "/" if len(tops) == 1 else ""


def _check_count(images: int) -> None:
    if images > MAX_IMAGES:
        raise BadArchiveError(f"the archive has {images} images; the limit is {MAX_IMAGES}")


def _names_of(entry: Descriptor) -> list[Reference]:
    """The author's name for the image. A bare tag (`1.0`) is not a name: it lacks the repository."""
    for key in (CONTAINERD_NAME, REF_NAME):
        name = entry.annotations.get(key, "")
        if name and ("/" in name or ":" in name or key == CONTAINERD_NAME):
            return [_parse_name(name)]
    return []


def _parse_name(name: str) -> Reference:
    try:
        return parse_reference(name)
    except BadImageReferenceError as error:
        raise BadArchiveError(f"an image's name in the archive: {error}") from error
