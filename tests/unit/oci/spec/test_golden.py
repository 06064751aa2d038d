"""Each case's whole document, reviewed as data under tests/data/spec."""

import json

import pytest

from cri_shim.oci.spec.container import encode_spec
from tests.unit.oci.spec.cases import CASES, GOLDEN_CGROUP, GOLDEN_DIR, golden_text


@pytest.mark.parametrize("case", sorted(CASES))
def test_spec_is_the_golden_document(case: str) -> None:
    spec = CASES[case](GOLDEN_CGROUP)
    assert golden_text(spec) == (GOLDEN_DIR / f"{case}.json").read_text()
    assert json.loads(encode_spec(spec)) == spec


def test_every_golden_document_has_a_case() -> None:
    assert {path.stem for path in GOLDEN_DIR.iterdir()} == set(CASES)
