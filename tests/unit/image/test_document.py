from __future__ import annotations

import json
import time

import msgspec
import pytest

from cri_shim.errors import BadArchiveError
from cri_shim.image.document import MAX_VALUES, decode_document, read_document


class Place(msgspec.Struct):
    os: str = ""
    os_features: list[str] = msgspec.field(default_factory=list, name="os.features")


class Entry(msgspec.Struct):
    digest: str = ""
    platform: Place | None = None
    annotations: dict[str, str] = {}


class Kind(msgspec.Struct):
    layers: list[str] = []
    manifests: list[Entry] = []
    entrypoint: list[str] = msgspec.field(default_factory=list, name="Entrypoint")


def refuse(data: bytes, words: str, max_bytes: int = 1 << 24) -> None:
    began = time.thread_time()
    with pytest.raises(BadArchiveError, match=f"^the document: .*{words}") as refused:
        decode_document(data, Kind, "the document", max_bytes)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1000
    assert time.thread_time() - began < 2


def test_a_document_comes_with_its_outermost_keys() -> None:
    found, keys = read_document(b'{"layers":["a"],"Other":{"inner":1}}', Kind, "d", 100)
    assert found.layers == ["a"]
    assert keys == {"layers", "other"}


@pytest.mark.parametrize(
    "data",
    [
        b'{"layers":[],"labels":{"A":"1","a":"2","Architecture":"3","architecture":"4"}}',
        b'{"manifests":[{"annotations":{"Layers":"1","layers":"2"}}]}',
        b'{"unknown":{"Layers":"1","layers":"2"}}',
        b'{"layers":[],"history":[{"a":1},{"a":2}],"n":[1e999,-0.0,12345678901234567890]}',
        '{"layers":[],"author":"é 漢"}'.encode(),
    ],
)
def test_what_reads_in_one_way_only_is_read(data: bytes) -> None:
    assert decode_document(data, Kind, "d", 1000).layers == []


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b'{"Layers":["a"]}', Kind(layers=["a"])),
        (b'{"layer\\u017f":["a"],"Unknown":{"Layers":[]}}', Kind(layers=["a"])),
        (b'{"entrypoint":["a"],"LAYERS":null}', Kind(entrypoint=["a"])),
        (
            b'{"Manifests":[{"DIGEST":"a","Platform":{"OS":"b","OS.Features":["c"]}}]}',
            Kind(manifests=[Entry("a", Place("b", ["c"]))]),
        ),
        (
            b'{"manifests":[{"Annotations":{"Digest":"a","digest":null}}]}',
            Kind(manifests=[Entry(annotations={"Digest": "a", "digest": ""})]),
        ),
    ],
)
def test_members_are_known_without_regard_for_case(data: bytes, found: Kind) -> None:
    assert decode_document(data, Kind, "d", 1000) == found


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"layers":[],"layers":["a"]}', "'layers' occurs twice in one object: ambiguous"),
        (b'{"a":{"b":1,"c":2,"b":3}}', "'b' occurs twice"),
        (b'{"a":1,"\\u0061":2}', "'a' occurs twice"),
        (b'{"layers":[],"Layers":["a"]}', "'layers' and 'Layers': ambiguous"),
        (b'{"layers":["a"],"layer\\u017f":["a"]}', "'layers' and '.*': ambiguous"),
        (b'{"layers":["a"],"LAYERS":null}', "'layers' and 'LAYERS': ambiguous"),
        (b'{"manifests":[{"Digest":"a","digest":"b"}]}', "'Digest' and 'digest'"),
        (b'{"manifests":[{"platform":{"OS":"a","os":"a"}}]}', "'OS' and 'os'"),
        (b'{"entrypoint":["a"],"ENTRYPOINT":["a"]}', "ambiguous"),
        (b'{"a":1,"a\\u001b' + b"x" * 5000 + b'":1,"a":2}', "twice"),
        (b"", "not a valid image document"),
        (b'{"layers":[1]}', "not a valid image document"),
        (b'{"a":"\xff"}', "not a valid image document"),
        (b'\xef\xbb\xbf{"a":1}', "not a valid image document"),
        (b'{"a":' + b"9" * 100 + b"}x", "not a valid image document"),
        (b'{"a":' * 60_000, "not a valid image document"),
        (b'{"a":NaN}', "not a valid image document"),
        (b" " * 101, "101 bytes; the limit is 100"),
        (b"[" * (MAX_VALUES + 1), "more than 100000 values"),
        (b'{"a":[' + b"1," * MAX_VALUES + b"1]}", "more than 100000 values"),
    ],
)
def test_what_is_ambiguous_malformed_or_too_much_is_refused(data: bytes, words: str) -> None:
    refuse(data, words, 100 if data.isspace() else 1 << 24)


def test_the_most_that_is_taken_is_taken_quickly() -> None:
    many = json.dumps({"labels": {str(n): "" for n in range(MAX_VALUES - 2)}}).encode()
    began = time.thread_time()
    decode_document(many, Kind, "d", 1 << 24)
    refuse(many[:-2] + b',"0":""}}', "")
    assert time.thread_time() - began < 3
