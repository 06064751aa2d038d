"""crictl about images: pull, images, inspecti, rmi, imagefsinfo."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conformance.crictl import Crictl

STAGING = "gcr.io/k8s-staging-cri-tools"
TAGS = f"{STAGING}/test-image-tags"
UNTAGGED = f"{STAGING}/test-image-latest"


@pytest.fixture
def pulled(crictl: Crictl) -> Iterator[list[str]]:
    """Images that a test pulls; they are taken away after it."""
    names: list[str] = []
    yield names
    for name in names:
        crictl("rmi", name)


def test_a_pulled_image_is_listed_with_its_tag_and_digest(
    crictl: Crictl, pulled: list[str]
) -> None:
    answer = crictl("pull", f"{TAGS}:1")
    pulled.append(f"{TAGS}:1")
    image_id = answer.removeprefix("Image is up to date for ")
    listed = crictl.json("images", f"{TAGS}:1")["images"]
    assert [image["id"] for image in listed] == [image_id]
    assert listed[0]["repoTags"] == [f"{TAGS}:1"]
    assert [name.split("@")[0] for name in listed[0]["repoDigests"]] == [TAGS]
    assert image_id in crictl("images", "-q").splitlines()


def test_a_name_without_a_tag_means_latest(crictl: Crictl, pulled: list[str]) -> None:
    crictl("pull", UNTAGGED)
    pulled.append(UNTAGGED)
    assert crictl.json("inspecti", UNTAGGED)["status"]["repoTags"] == [f"{UNTAGGED}:latest"]


def test_an_image_can_be_pulled_by_its_digest(crictl: Crictl, pulled: list[str]) -> None:
    crictl("pull", f"{TAGS}:1")
    (digest,) = crictl.json("inspecti", f"{TAGS}:1")["status"]["repoDigests"]
    crictl("rmi", f"{TAGS}:1")
    crictl("pull", digest)
    pulled.append(digest)
    status = crictl.json("inspecti", digest)["status"]
    assert status["repoDigests"] == [digest]
    assert status["repoTags"] == []


def test_tags_of_one_image_share_it_and_go_with_it(crictl: Crictl) -> None:
    names = [f"{TAGS}:{number}" for number in (1, 2, 3)]
    for name in names:
        crictl("pull", name)
    status = crictl.json("inspecti", names[0])["status"]
    assert sorted(status["repoTags"]) == names
    crictl("rmi", status["id"])
    assert crictl.refusal("inspecti", names[2]).endswith(f'no such image \\"{names[2]}\\" present"')


def test_inspecti_shows_user_and_configuration(crictl: Crictl, pulled: list[str]) -> None:
    name = f"{STAGING}/test-image-user-uid:latest"
    crictl("pull", name)
    pulled.append(name)
    shown = crictl.json("inspecti", name)
    assert shown["status"]["uid"]["value"] == "1002"
    assert int(shown["status"]["size"]) > 0
    assert shown["info"]["imageSpec"]["config"]["Cmd"] == ["sh"]


def test_rmi_of_what_is_not_there_says_so(crictl: Crictl) -> None:
    assert "no such image nonesuch" in crictl.refusal("rmi", "nonesuch")


def test_an_image_in_use_is_kept_from_prune(crictl: Crictl, image: str) -> None:
    crictl("pull", f"{TAGS}:1")
    pod = crictl.file({"metadata": {"name": "prune", "namespace": "n", "uid": "u"}, "linux": {}})
    config = {"metadata": {"name": "c"}, "image": {"image": image}, "linux": {}}
    pod_id = crictl("runp", pod)
    crictl("create", pod_id, crictl.file(config), pod)
    assert crictl("rmi", "--prune") == f"Deleted: {TAGS}:1"
    assert crictl.json("inspecti", image)["status"]["repoTags"] == [image]


def test_imagefsinfo_counts_what_images_take(crictl: Crictl) -> None:
    (filesystem,) = crictl.json("imagefsinfo")["status"]["imageFilesystems"]
    assert int(filesystem["usedBytes"]["value"]) > 1_000_000
    assert int(filesystem["inodesUsed"]["value"]) > 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (f"{STAGING}/nonesuch:1", ["nonesuch:1", "manifest", "404 Not Found"]),
        (f"{TAGS}:nonesuch", [f"{TAGS}:nonesuch", "404 Not Found"]),
        (f"{TAGS}@sha256:{'0' * 64}", ["0" * 64, "404 Not Found"]),
        ("BAD::ref", ["InvalidArgument", "'BAD::ref'", "tag"]),
        ("team/Upper", ["InvalidArgument", "'team/Upper'"]),
        (f"{TAGS}@sha256:abc", ["InvalidArgument", "sha256:abc"]),
    ],
)
def test_a_pull_that_fails_says_what_and_why(crictl: Crictl, name: str, words: list[str]) -> None:
    said = crictl.refusal("pull", name)
    assert [word for word in words if word not in said] == [], said
