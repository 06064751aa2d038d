"""Documents of other formats: older ones are brought up to this one, newer ones and nonsense are refused."""

from __future__ import annotations

import json

import pytest

from cri_shim.errors import CorruptStateError
from cri_shim.sandbox.store.formats import STEPS, in_this_format
from cri_shim.sandbox.store.model import RECORD_FORMAT

ADD = {
    1: lambda document: {**document, "second": True},
    2: lambda document: {**document, "third": document["second"]},
}


def test_a_document_of_this_format_stays_as_it_is() -> None:
    written = json.dumps({"format": RECORD_FORMAT, "id": "x"}).encode()
    assert in_this_format(written) == written


def test_an_older_document_goes_through_every_step_in_between() -> None:
    written = b'{"format": 1, "id": "x"}'
    assert json.loads(in_this_format(written, newest=3, steps=ADD)) == {
        "format": 3,
        "id": "x",
        "second": True,
        "third": True,
    }


def test_every_format_before_this_one_has_its_step() -> None:
    assert set(STEPS) == set(range(1, RECORD_FORMAT))


def test_a_newer_document_is_refused_also_where_its_fields_are_unknown() -> None:
    with pytest.raises(CorruptStateError, match="newer cri-shim"):
        in_this_format(b'{"format": 99, "id": {"not": "a string any more"}}')


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"format": null}', b'{"format": 0}', b'{"format": -4}', b"\xff"]
)
def test_what_no_version_has_written_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptStateError):
        in_this_format(data)
