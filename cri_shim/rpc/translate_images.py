"""Builds CRI messages of images, and admin messages of their damage. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from cri_shim._pb.admin.v1 import admin_pb2 as admin
from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.image.manifest import kept_annotations
from cri_shim.image.registry.credentials import credentials_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cri_shim.image.integrity.report import Finding
    from cri_shim.image.model import Image
    from cri_shim.image.registry.credentials import Credentials

MAX_LISTED_ANNOTATIONS_BYTES: Final = 1 << 10
"""Annotations of one image in a list. An image may have 16 KiB, and a thousand such images would fill the 16 MiB that
kubelet accepts as a response."""
MAX_USER_CHARS: Final = 256
"""The longest USER name in a message. An image may have one of 100,000 characters, as which no container can run."""
MAX_UID: Final = (1 << 32) - 2
"""The largest user ID; the kernel uses 2**32-1 for "no user"."""


def listed_image(image: Image) -> api.Image:
    """The entry of an image in ListImagesResponse, with bounded annotations: all entries share one message."""
    return _entry(image, kept_annotations(image.annotations, MAX_LISTED_ANNOTATIONS_BYTES))


def image_entry(image: Image) -> api.Image:
    """The image in ImageStatusResponse, with all its annotations."""
    return _entry(image, image.annotations)


def _entry(image: Image, annotations: Mapping[str, str]) -> api.Image:
    entry = api.Image(
        id=image.id,
        repo_tags=image.repo_tags,
        repo_digests=image.repo_digests,
        size=image.size,
        spec=api.ImageSpec(image=image.id, annotations=annotations),
        pinned=image.pinned,
    )
    user = image.config.user.partition(":")[0]
    if is_uid(user):
        entry.uid.SetInParent()  # makes UID 0 present on the wire: kubelet checks for it with runAsNonRoot
        entry.uid.value = int(user)
    else:
        entry.username = user[:MAX_USER_CHARS]
    return entry


def credentials(auth: api.AuthConfig) -> Credentials | None:
    """The credentials of a pull, or None for none. Raises InvalidArgumentError for a malformed `auth`."""
    return credentials_of(
        username=auth.username,
        password=auth.password,
        auth=auth.auth,
        server_address=auth.server_address,
        identity_token=auth.identity_token,
        registry_token=auth.registry_token,
    )


def image_info(image: Image, configuration: bytes) -> dict[str, object]:
    """The verbose part of ImageStatusResponse; `configuration` is the image's configuration document."""
    return {
        "chainID": image.chain[-1] if image.chain else "",
        "layers": list(image.chain),
        "manifests": list(image.manifest_digests),
        "imageSpec": msgspec.Raw(configuration),
    }


def damage_entry(finding: Finding, *, repaired: bool = False, reason: str = "") -> admin.Damage:
    """A damage, whether it was repaired, and if not the reason."""
    return admin.Damage(
        kind=finding.damage,
        object=finding.object,
        images=finding.images,
        detail=finding.detail,
        repaired=repaired,
        reason=reason,
    )


def is_uid(user: str) -> bool:
    """Whether an image's USER is a valid numeric user ID.

    Anything else is sent as a username. With runAsNonRoot kubelet refuses a username, since it cannot verify it.
    """
    return user.isascii() and user.isdigit() and len(user) <= 10 and int(user) <= MAX_UID
