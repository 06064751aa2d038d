"""Under which name an image is shown."""

from __future__ import annotations

import pytest

from cri_shim.image.manifest import ImageConfig
from cri_shim.image.model import Image

ID = "sha256:" + "1" * 64
DIGESTED = "docker.io/library/app@sha256:" + "2" * 64


def make_image(*tags: str, digests: tuple[str, ...] = (DIGESTED,)) -> Image:
    return Image(
        id=ID,
        repo_tags=tags,
        repo_digests=digests,
        size=1,
        config=ImageConfig(),
        pinned=False,
        chain=(),
        manifest_digests=(),
    )


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        ("app:2", "docker.io/library/app:2"),
        ("docker.io/library/app:1", "docker.io/library/app:1"),
        ("app", "docker.io/library/app:1"),  # a tag that went elsewhere meanwhile
        (ID, "docker.io/library/app:1"),
        (DIGESTED, "docker.io/library/app:1"),
        ("", "docker.io/library/app:1"),
    ],
)
def test_who_asked_for_a_tag_sees_it_and_others_the_first(wanted: str, shown: str) -> None:
    image = make_image("docker.io/library/app:1", "docker.io/library/app:2")
    assert image.name_for(wanted) == shown


def test_an_image_without_tags_is_shown_by_its_digest_and_without_that_by_its_id() -> None:
    assert make_image().name_for("app:1") == DIGESTED
    assert make_image(digests=()).name_for(ID) == ID
