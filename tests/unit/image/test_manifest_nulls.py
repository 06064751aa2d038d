"""Documents as Go's readers take them: null stands for no value, and what nobody knows is passed over."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest

from cri_shim.errors import BadArchiveError
from cri_shim.image.manifest import parse_config, parse_document

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

A, B = ("sha256:" + letter * 64 for letter in "ab")
PLATFORM = {
    "os": "linux",
    "architecture": "amd64",
    "variant": "v1",
    "os.version": "1",
    "os.features": ["x"],
}
DESCRIPTOR = {
    "digest": B,
    "size": 3,
    "mediaType": "application/vnd.oci.image.layer.v1.tar",
    "annotations": {"a": "b"},
    "urls": ["https://example.com"],
    "data": "AAAA",
    "platform": PLATFORM,
    "unknown": {"deep": [{"x": 1}]},
}
MANIFEST: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": A, "size": 2},
    "layers": [DESCRIPTOR],
    "annotations": {"a": "b"},
    "subject": DESCRIPTOR,
    "artifactType": "",
    "unknown": [1],
}
INDEX: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.index.v1+json",
    "manifests": [DESCRIPTOR | {"artifactType": "x"}],
    "annotations": {"a": "b"},
    "subject": DESCRIPTOR,
    "unknown": 1,
}
CONFIG: dict[str, Any] = {
    "created": "2020-01-02T03:04:05Z",
    "author": "a",
    **PLATFORM,
    "config": {
        "User": "u",
        "ExposedPorts": {"80/tcp": {}},
        "Env": ["A=b"],
        "Entrypoint": ["e"],
        "Cmd": ["c"],
        "Volumes": {"/v": {}},
        "WorkingDir": "/w",
        "Labels": {"l": "x"},
        "StopSignal": "TERM",
        "ArgsEscaped": True,
        "Unknown": {"x": 1},
    },
    "rootfs": {"type": "layers", "diff_ids": [A]},
    "history": [{"created": "2020-01-02T03:04:05Z", "empty_layer": True}],
}
REQUIRED = {
    ("schemaVersion",),
    ("manifests",),
    ("config",),
    ("config", "digest"),
    ("config", "size"),
    ("config", "mediaType"),  # it tells an image from an artifact
    ("layers", 0),
    ("layers", 0, "digest"),
    ("layers", 0, "size"),
    ("layers", 0, "mediaType"),
    ("manifests", 0),
    ("manifests", 0, "digest"),
    ("manifests", 0, "size"),
    ("rootfs",),
    ("rootfs", "diff_ids", 0),
}
Place = tuple[str | int, ...]
KINDS: dict[str, tuple[dict[str, Any], Callable[[bytes, str], object]]] = {
    "manifest": (MANIFEST, parse_document),
    "index": (INDEX, parse_document),
    "configuration": (CONFIG, parse_config),
}


def places(value: object, above: Place = ()) -> Iterator[Place]:
    """Every member and item below `value`."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield (*above, key)
        yield from places(inner, (*above, key))


def changed(document: dict[str, Any], place: Place, *, absent: bool) -> bytes:
    """`document` with null in that place, or with nothing there."""
    document = json.loads(json.dumps(document))  # nothing in it twice
    inside: Any = document
    for key in place[:-1]:
        inside = inside[key]
    if absent:
        del inside[place[-1]]
    else:
        inside[place[-1]] = None
    return json.dumps(document).encode()


def required(kind: str, place: Place) -> bool:
    return place in REQUIRED and not (kind == "configuration" and place[0] == "config")


ALL = [(kind, place) for kind, (document, _) in KINDS.items() for place in places(document)]
IN_MAPS = {"annotations", "Volumes"}


@pytest.mark.parametrize(
    ("kind", "place"), [each for each in ALL if not required(*each)], ids=lambda value: str(value)
)
def test_null_is_as_good_as_nothing(kind: str, place: Place) -> None:
    document, parse = KINDS[kind]
    found = parse(changed(document, place, absent=False), "m")
    if isinstance(place[-1], str) and not (len(place) > 1 and place[-2] in IN_MAPS):
        assert found == parse(changed(document, place, absent=True), "m")


@pytest.mark.parametrize(
    ("kind", "place"), [each for each in ALL if required(*each)], ids=lambda value: str(value)
)
def test_null_is_no_value_of_what_there_must_be(kind: str, place: Place) -> None:
    document, parse = KINDS[kind]
    with pytest.raises(BadArchiveError):
        parse(changed(document, place, absent=False), "m")


def test_a_map_keeps_the_keys_that_have_no_value() -> None:
    document = copy.deepcopy(CONFIG)
    document["config"] |= {"Volumes": {"/v": None}, "Env": ["A=b", None]}
    found = parse_config(json.dumps(document).encode(), "c")
    assert (found.volumes, found.env) == (("/v",), ("A=b", ""))
    annotated = parse_document(json.dumps(MANIFEST | {"annotations": {"a": None}}).encode(), "m")
    assert annotated.annotations == {"a": ""}


def test_everything_at_once_may_be_null() -> None:
    document = copy.deepcopy(MANIFEST)
    for name in ("mediaType", "layers", "annotations", "subject", "artifactType", "unknown"):
        document[name] = None
    parse_document(json.dumps(document).encode(), "m")
    parse_config(b'{"rootfs":{"type":null,"diff_ids":null},"config":null,"os":null}', "c")


@pytest.mark.parametrize("number", ["1e999", "9" * 100_000, "-0.0"])
def test_a_number_that_nobody_reads_is_no_reason_to_refuse(number: str) -> None:
    data = json.dumps(MANIFEST | {"unknown": "here", "subject": None}).replace('"here"', number)
    parse_document(data.encode(), "m")
    sized = json.dumps(MANIFEST | {"subject": None}).replace('"size": 2', f'"size": {number}')
    with pytest.raises(BadArchiveError):
        parse_document(sized.encode(), "m")


@pytest.mark.parametrize("text", ['"\\ud800"', "NaN", "[1,]"])
def test_null_makes_no_document_valid(text: str) -> None:
    data = json.dumps(MANIFEST | {"unknown": "here", "subject": None}).replace('"here"', text)
    with pytest.raises(BadArchiveError):
        parse_document(data.encode(), "m")
