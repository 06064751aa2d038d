"""Pinned names and patterns."""

from __future__ import annotations

import pytest

from cri_shim.errors import ConfigError
from cri_shim.image.pins import Pins

DIGEST = "sha256:" + "a" * 64
HUB = "docker.io/library/busybox"


@pytest.mark.parametrize(
    ("entry", "name", "pinned"),
    [
        ("busybox", f"{HUB}:latest", True),
        ("busybox", f"{HUB}:1.36", False),
        (f"{HUB}:1.36", f"{HUB}:1.36", True),
        (f"busybox@{DIGEST}", f"{HUB}@{DIGEST}", True),
        (f"busybox:1@{DIGEST}", f"{HUB}@{DIGEST}", True),
        (f"busybox:1@{DIGEST}", f"{HUB}:1", False),
        ("busybox*", f"{HUB}:1.36", True),
        ("library/busybox*", f"{HUB}:1.36", False),
        ("docker.io/*", f"{HUB}:1.36", True),
        ("*pause*", "registry.k8s.io/pause:3.10", True),
        ("registry.k8s.io/*", "registry.k8s.io/a/b:1", True),
        ("registry.k8s.io/*", "xregistry.k8s.io/a:1", False),
        ("registry.k8s.io/*", "registry-k8s.io/a:1", False),
        ("*:5000/x:*", "[::1]:5000/x:1", True),
        ("[::1]:5000/*", "[::1]:5000/x:1", True),
        ("*", "r.example/a:1", True),
        ("**a**", "r.example/a:1", True),
        ("r.example/*:1", "r.example/a:2", False),
        ("r.example/*:1", "r.example/:1", True),
        ("r.example/ab*ba:1", "r.example/aba:1", False),
        ("*a*b*", "b/a:1", False),
        ("*aa*a:*", "x.y/aa:1", False),
    ],
)
def test_an_entry_pins(entry: str, name: str, pinned: bool) -> None:
    assert Pins([entry]).match([name]) is pinned


def test_any_name_will_do_and_none_does_not() -> None:
    pins = Pins(["r.example/b:1"])
    assert pins.match(["r.example/a:1", "r.example/b:1"])
    assert not pins.match([])


def test_the_built_in_images_always_are() -> None:
    assert Pins().match(["cri-shim.local/pause:1"])


@pytest.mark.parametrize("entry", ["", "UPPER", "a b*", "a?*", "\n*"])
def test_what_can_name_no_image_is_refused_with_its_key(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"^images\.pinned: "):
        Pins([entry])


def test_a_hostile_name_is_matched_in_time() -> None:
    pins = Pins(["*a*a*a*a*b"])
    assert not pins.match(["r.example/" + "a" * 240 + ":1"])
