"""Choose from an image index by platform, and check a configuration's platform.

Rules: pure. Names are Go's GOOS and GOARCH, as in the specs; common other spellings are understood.

Spec: OCI image-spec 1.1, image-index, "platform".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.errors import BadArchiveError
from cri_shim.image.manifest import (
    ATTESTATION,
    INDEX_TYPES,
    MANIFEST_TYPES,
    Platform,
    check_layers,
)
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from cri_shim.image.manifest import Descriptor, ImageConfig, Index, Manifest

_ALIASES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64"}
_PLATFORMS_SHOWN = 12


def check_config(config: ImageConfig, manifest: Manifest, host: Platform, *, chosen: bool) -> None:
    """Raises BadArchiveError if the configuration doesn't match `manifest`, or is for another platform than `host`.

    `chosen`: an index lists the image for this host. A configuration that says otherwise is then most likely a
    builder's mistake, so the platform is not checked.
    """
    if not chosen:
        check_platform(config, host, f"image config {manifest.config.digest}")
    check_layers(config, manifest)


_MACHINES = {
    "x86_64": Platform(os="linux", architecture="amd64"),
    "aarch64": Platform(os="linux", architecture="arm64", variant="v8"),
    "armv7l": Platform(os="linux", architecture="arm", variant="v7"),
    "armv6l": Platform(os="linux", architecture="arm", variant="v6"),
    "i686": Platform(os="linux", architecture="386"),
    "ppc64le": Platform(os="linux", architecture="ppc64le"),
    "s390x": Platform(os="linux", architecture="s390x"),
    "riscv64": Platform(os="linux", architecture="riscv64"),
    "loongarch64": Platform(os="linux", architecture="loong64"),
}


def platform_of(machine: str) -> Platform:
    """The platform of a Linux machine with this uname(2) machine name."""
    return _MACHINES.get(machine, Platform(os="linux", architecture=machine))


def choose_manifest(index: Index, host: Platform, what: str) -> Descriptor:
    """The entry of `index` that runs best on `host`; the first of equally good ones.

    An entry without a platform matches any host, as a last resort. Raises BadArchiveError, which lists the platforms.
    """
    best: Descriptor | None = None
    best_rank = 0
    for entry in index.manifests:
        if entry.media_type not in MANIFEST_TYPES | INDEX_TYPES:
            continue  # an artifact with a media type of its own
        if entry.artifact_type or ATTESTATION in entry.annotations:
            continue
        rank = _rank(entry.platform, host)
        if rank > best_rank:
            best, best_rank = entry, rank
    if best is None:
        found = sorted({_spell(e.platform) for e in index.manifests if e.platform is not None})
        has = ", ".join(found[:_PLATFORMS_SHOWN]) or "nothing"
        more = ", …" if len(found) > _PLATFORMS_SHOWN else ""
        raise BadArchiveError(f"{what}: no entry for {_spell(host)}; it has {has}{more}")
    return best


def is_candidate(entry: Descriptor, host: Platform) -> bool:
    """Whether an entry of an OCI layout's index may be an image for `host`."""
    image = not entry.media_type or entry.media_type in MANIFEST_TYPES | INDEX_TYPES
    return image and _rank(entry.platform, host) > 0


def names_machine(entry: Descriptor) -> bool:
    """Whether an index entry states an architecture."""
    return entry.platform is not None and bool(entry.platform.architecture)


def check_platform(config: ImageConfig, host: Platform, what: str) -> None:
    """Raises BadArchiveError if the image states another platform than `host`."""
    if problem := platform_problem(config, host):
        raise BadArchiveError(f"{what}: {problem}")


def platform_problem(config: ImageConfig, host: Platform) -> str:
    """The mismatch, if the image states another platform than `host`; otherwise empty."""
    own = Platform(
        os=config.os or host.os,
        architecture=config.architecture or host.architecture,
        variant=config.variant,
        os_features=list(config.os_features),
    )
    if _rank(own, host) == 0:
        return f"the image is for {_spell(own)}, this machine is {_spell(host)}"
    return ""


def _rank(platform: Platform | None, host: Platform) -> int:
    """How well `platform` suits `host`; 0 if it can't run there."""
    if platform is None:
        return 1
    architecture, variant = _normal(platform)
    if platform.os not in ("", host.os) or platform.os_features:
        return 0
    if not architecture:
        return 1
    if architecture != host.architecture:
        return 0
    if variant == host.variant:
        return 100
    if host.architecture == "arm":
        # Programs for an older variant run on a newer machine. The newest such variant is the best.
        ours, theirs = host.variant.lstrip("v"), (variant or "v7").lstrip("v")
        if _is_small(ours) and _is_small(theirs) and int(theirs) <= int(ours):
            return 10 + int(theirs)
        return 0
    if not variant:
        return 50
    # amd64/v2 and higher may use instructions that this machine lacks.
    return 0


def _normal(platform: Platform) -> tuple[str, str]:
    """Architecture and variant in the specs' spelling."""
    architecture = _ALIASES.get(platform.architecture, platform.architecture)
    variant = platform.variant
    if (architecture, variant) in (("amd64", "v1"), ("arm64", "8")):
        variant = "" if architecture == "amd64" else "v8"
    return architecture, variant


def _is_small(number: str) -> bool:
    return len(number) == 1 and number in "0123456789"


def _spell(platform: Platform | None) -> str:
    if platform is None:
        return "any platform"
    variant = f"/{platform.variant}" if platform.variant else ""
    text = f"{platform.os}/{platform.architecture}{variant}"
    if platform.os_features:
        text += f" with {', '.join(platform.os_features[:8])}"
    return text if text.isprintable() and len(text) < 100 else quoted(text)
