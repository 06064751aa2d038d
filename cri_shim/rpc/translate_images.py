"""Images as CRI messages, and what is found in them as those of the admin service. Pure."""

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
"""Of an image in a list. Each may have sixteen times as much, and a thousand of those are all that a kubelet takes."""
MAX_USER_CHARS: Final = 256
"""Of a USER that is no number: an image may have one of a hundred thousand, which no container can run as."""
MAX_UID: Final = (1 << 32) - 2
"""The largest user; the kernel takes 2**32-1 for "no user"."""


def listed_image(image: Image) -> api.Image:
    """The entry of ListImages: bounded, as those of all images together must fit what a kubelet takes."""
    return _entry(image, kept_annotations(image.annotations, MAX_LISTED_ANNOTATIONS_BYTES))


def image_entry(image: Image) -> api.Image:
    """What ImageStatus answers."""
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
        entry.uid.SetInParent()  # 0 is a user too, and the one that kubelet asks about
        entry.uid.value = int(user)
    else:
        entry.username = user[:MAX_USER_CHARS]
    return entry


def credentials(auth: api.AuthConfig) -> Credentials | None:
    """What a pull may show to the registry; None for nothing. Raises InvalidArgumentError for a malformed `auth`."""
    return credentials_of(
        username=auth.username,
        password=auth.password,
        auth=auth.auth,
        server_address=auth.server_address,
        identity_token=auth.identity_token,
        registry_token=auth.registry_token,
    )


def image_info(image: Image, configuration: bytes) -> dict[str, object]:
    """What an operator may want to know beyond CRI's fields; `configuration` is the document it came with."""
    return {
        "chainID": image.chain[-1] if image.chain else "",
        "layers": list(image.chain),
        "manifests": list(image.manifest_digests),
        "imageSpec": msgspec.Raw(configuration),
    }


def damage_entry(finding: Finding, *, repaired: bool = False, reason: str = "") -> admin.Damage:
    """A damage, and what became of it where it was to be repaired."""
    return admin.Damage(
        kind=finding.damage,
        object=finding.object,
        images=finding.images,
        detail=finding.detail,
        repaired=repaired,
        reason=reason,
    )


def is_uid(user: str) -> bool:
    """Whether an image's user is a number that can be a user.

    Anything else is shown as a name, which kubelet doesn't take for "not root".
    """
    return user.isascii() and user.isdigit() and len(user) <= 10 and int(user) <= MAX_UID
