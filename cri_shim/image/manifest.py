"""Parse and check image documents: manifests, indexes and configurations of the OCI and Docker families.

Rules: pure. A document's content says what it is, never the name that a registry or archive gave it. A document that
could be read as two kinds is refused, like other ambiguous ones (`document`). Kinds that can't run are refused by name:
schema 1, foreign layers, artifacts.

Specs: OCI image-spec 1.1 (manifest, image-index, config), Docker image manifest v2 schema 2.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NoReturn

import msgspec

from cri_shim.errors import BadArchiveError
from cri_shim.image.document import decode_document, read_document
from cri_shim.image.reference import is_digest
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MAX_MANIFEST_BYTES = 4 << 20
"""The size up to which registries should accept manifests (distribution spec)."""
MAX_CONFIG_BYTES = 4 << 20
MAX_WORDS_BYTES = 128 << 10
"""The limit of memory per kept configuration, by `_cost`. The kernel limits arguments to hardly more anyway."""
MAX_ANNOTATIONS_BYTES = 16 << 10
"""The kept annotations of one manifest, by `_cost`: those of all images must fit into one gRPC message."""
MAX_LAYER_BYTES = 64 << 30
"""The limit for a packed layer, and for an unpacked one."""
MAX_LAYERS = 500
"""overlayfs mounts at most 500 lower directories."""

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"

ATTESTATION = "vnd.docker.reference.type"
"""The annotation of an index entry that attests something about another entry, and is no image."""
REF_NAME = "org.opencontainers.image.ref.name"
"""The annotation that names an entry of an OCI layout's index."""

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
_CONFIG_TYPES = frozenset({OCI_CONFIG, DOCKER_CONFIG})
_SCHEMA1_PREFIX = "application/vnd.docker.distribution.manifest.v1+"
_WORD_BYTES = 64
"""Overhead of a string's object and of its place in a list."""


_LAYER_TYPES = frozenset(
    {
        *(OCI_LAYER, f"{OCI_LAYER}+gzip", f"{OCI_LAYER}+zstd"),
        *(DOCKER_LAYER, f"{DOCKER_LAYER}.gzip", f"{DOCKER_LAYER}.zstd"),
    }
)


class Platform(msgspec.Struct, frozen=True, kw_only=True):
    """The platform of an index entry or of a configuration."""

    os: str = ""
    architecture: str = ""
    variant: str = ""
    os_features: list[str] = msgspec.field(default_factory=list, name="os.features")
    """Features that the image requires of the operating system. The spec defines none for Linux."""


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A reference to a blob: media type, size and digest."""

    media_type: str = ""
    digest: str
    size: int
    annotations: dict[str, str] = {}
    platform: Platform | None = None
    artifact_type: str = ""

    def bare(self) -> Descriptor:
        """The descriptor without annotations and platform."""
        return Descriptor(media_type=self.media_type, digest=self.digest, size=self.size)


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One image: its configuration and its layers, lowest first."""

    schema_version: int = msgspec.field(name="schemaVersion")
    media_type: str = ""
    config: Descriptor
    # A lambda, which msgspec can't recognise as an empty default: `omit_defaults` then keeps the member.
    layers: list[Descriptor] = msgspec.field(default_factory=lambda: [])  # noqa: PIE807
    """May be empty: the image's program is then mounted. Go programs write null for it."""
    annotations: dict[str, str] = {}
    artifact_type: str = ""


class Index(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A list of manifests: one per platform, or the content of an OCI layout."""

    schema_version: int = msgspec.field(name="schemaVersion")
    media_type: str = ""
    manifests: list[Descriptor]
    annotations: dict[str, str] = {}


class _Process(msgspec.Struct, frozen=True, kw_only=True):
    """`config` of the image configuration."""

    user: str = msgspec.field(default="", name="User")
    env: list[str] = msgspec.field(default_factory=list, name="Env")
    entrypoint: list[str] = msgspec.field(default_factory=list, name="Entrypoint")
    cmd: list[str] = msgspec.field(default_factory=list, name="Cmd")
    working_dir: str = msgspec.field(default="", name="WorkingDir")
    volumes: dict[str, msgspec.Raw] = msgspec.field(default_factory=dict, name="Volumes")
    stop_signal: str = msgspec.field(default="", name="StopSignal")


class _RootFs(msgspec.Struct, frozen=True):
    type: str = "layers"
    diff_ids: list[str] = []


class _ConfigDocument(msgspec.Struct, frozen=True, kw_only=True):
    os: str = ""
    architecture: str = ""
    variant: str = ""
    os_features: list[str] = msgspec.field(default_factory=list, name="os.features")
    created: str = ""
    config: _Process = _Process()
    rootfs: _RootFs


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of an image configuration that matter to containers. All of it is untrusted; the sandbox sets policy.

    It stays in memory while the image is here, bounded by `MAX_WORDS_BYTES`.
    """

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    os: str = ""
    architecture: str = ""
    variant: str = ""
    os_features: tuple[str, ...] = ()
    created: str = ""
    diff_ids: tuple[str, ...] = ()


class _Kind(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The members that tell what kind of document it is."""

    schema_version: int = msgspec.field(default=0, name="schemaVersion")
    media_type: str = ""


def digest_of(data: bytes) -> str:
    """The `sha256:` digest of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def parse_document(data: bytes, what: str) -> Manifest | Index:
    """Parse a manifest or an index; `what` names it in errors.

    Raises BadArchiveError: too large, malformed, ambiguous, or of a kind that can't run.
    """
    kind, keys = read_document(data, _Kind, what, MAX_MANIFEST_BYTES)
    media_type = kind.media_type
    if kind.schema_version == 1 or "fslayers" in keys or media_type.startswith(_SCHEMA1_PREFIX):
        _refuse(what, "it is a Docker schema 1 manifest, obsolete since 2017: push the image anew")
    if kind.schema_version != 2:
        _refuse(what, f"schemaVersion is {kind.schema_version}, not 2")
    is_index = "manifests" in keys
    is_manifest = "layers" in keys or "config" in keys
    if is_index and is_manifest:
        _refuse(what, "it has both `manifests` and `layers` or `config`: ambiguous")
    if not is_index and not is_manifest:
        _refuse(what, "it has none of `manifests`, `layers` and `config`: not an image")
    allowed = INDEX_TYPES if is_index else MANIFEST_TYPES
    if media_type and media_type not in allowed:
        _refuse(what, f"mediaType {quoted(media_type)} does not match its content")
    if is_index:
        index = decode_document(data, Index, what, MAX_MANIFEST_BYTES)
        for entry in index.manifests:
            _check_descriptor(entry, what)
        return index
    manifest = decode_document(data, Manifest, what, MAX_MANIFEST_BYTES)
    _check_manifest(manifest, what)
    return manifest


def _check_manifest(manifest: Manifest, what: str) -> None:
    _check_descriptor(manifest.config, what)
    if manifest.artifact_type or manifest.config.media_type not in _CONFIG_TYPES:
        kind = manifest.artifact_type or manifest.config.media_type
        _refuse(what, f"it is an artifact ({quoted(kind)}), not a container image")
    if len(manifest.layers) > MAX_LAYERS:
        _refuse(
            what, f"it has {len(manifest.layers)} layers; overlayfs mounts at most {MAX_LAYERS}"
        )
    for layer in manifest.layers:
        _check_descriptor(layer, what)
        _check_layer_type(layer, what)
        if layer.size > MAX_LAYER_BYTES:
            _refuse(
                what,
                f"layer {layer.digest} has {layer.size} bytes; the limit is {MAX_LAYER_BYTES}",
            )


def _check_descriptor(descriptor: Descriptor, what: str) -> None:
    if not is_digest(descriptor.digest):
        _refuse(what, f"digest {quoted(descriptor.digest)} is not sha256 and 64 hexadecimal digits")
    if descriptor.size < 0:
        _refuse(what, f"blob {descriptor.digest} has the negative size {descriptor.size}")


def _check_layer_type(layer: Descriptor, what: str) -> None:
    """Check that a layer is a tar; its bytes tell the compression. `urls` are ignored: the registry must have it."""
    media_type = layer.media_type
    if "nondistributable" in media_type or ".foreign." in media_type:
        _refuse(what, f"layer {layer.digest} is foreign (kept outside the registry): not supported")
    if media_type not in _LAYER_TYPES:
        _refuse(what, f"layer {layer.digest} has the unknown media type {quoted(media_type)}")


def parse_config(data: bytes, what: str) -> ImageConfig:
    """Parse an image configuration.

    Raises BadArchiveError: too large, malformed, ambiguous, or with layer digests other than sha256.
    """
    document = decode_document(data, _ConfigDocument, what, MAX_CONFIG_BYTES)
    diff_ids = tuple(document.rootfs.diff_ids)
    for diff_id in diff_ids:
        if not is_digest(diff_id):
            _refuse(what, f"diff ID {quoted(diff_id)} is not sha256 and 64 hexadecimal digits")
    if len(diff_ids) > MAX_LAYERS:
        _refuse(what, f"it has {len(diff_ids)} layers; overlayfs mounts at most {MAX_LAYERS}")
    process = document.config
    config = ImageConfig(
        user=process.user,
        env=tuple(process.env),
        entrypoint=tuple(process.entrypoint),
        cmd=tuple(process.cmd),
        working_dir=process.working_dir,
        volumes=tuple(process.volumes),
        stop_signal=process.stop_signal,
        os=document.os,
        architecture=document.architecture,
        variant=document.variant,
        os_features=tuple(document.os_features),
        created=document.created,
        diff_ids=diff_ids,
    )
    _check_words(config, what)
    return config


def _check_words(config: ImageConfig, what: str) -> None:
    words = [config.user, config.working_dir, config.stop_signal, config.created]
    words += [config.os, config.architecture, config.variant, *config.os_features]
    words += [*config.env, *config.entrypoint, *config.cmd, *config.volumes]
    if (cost := _cost(words)) > MAX_WORDS_BYTES:
        _refuse(
            what,
            f"Env, Entrypoint, Cmd, Volumes and the like take {cost} bytes of memory ({_WORD_BYTES} per word on top of "
            f"its text); the limit is {MAX_WORDS_BYTES}",
        )


def without_words(manifest: Manifest) -> Manifest:
    """`manifest` without its author's text, except for the annotations that are kept."""
    return Manifest(
        schema_version=manifest.schema_version,
        media_type=manifest.media_type,
        config=manifest.config.bare(),
        layers=[layer.bare() for layer in manifest.layers],
        annotations=kept_annotations(manifest.annotations),
    )


def kept_annotations(
    annotations: Mapping[str, str], max_bytes: int = MAX_ANNOTATIONS_BYTES
) -> dict[str, str]:
    """The first annotations of a manifest, as far as `max_bytes` reaches."""
    kept = {}
    left = max_bytes
    for key, value in annotations.items():
        left -= _cost((key, value))
        if left < 0:
            break
        kept[key] = value
    return kept


def _cost(words: Iterable[str]) -> int:
    """Bytes of memory for these words: Python keeps each in its own object, with up to four bytes per character."""
    return sum(len(word) * (1 if word.isascii() else 4) + _WORD_BYTES for word in words)


def check_layers(config: ImageConfig, manifest: Manifest) -> None:
    """Raises BadArchiveError unless configuration and manifest have the same number of layers."""
    if len(config.diff_ids) != len(manifest.layers):
        _refuse(
            f"image config {manifest.config.digest}",
            f"it has {len(config.diff_ids)} diff IDs, but the manifest has {len(manifest.layers)} layers",
        )


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The chain ID of each layer of a stack, lowest first (image-spec, config, "Layer ChainID")."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(digest_of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain


def _refuse(what: str, reason: str) -> NoReturn:
    raise BadArchiveError(f"{what}: {reason}")
