"""Image references, and what is asked of a reference before anything is looked up."""

from __future__ import annotations

from cri_shim.errors import BadImageReferenceError
from cri_shim.image.reference import MAX_NAME_LENGTH, MAX_REFERENCE_LENGTH, parse_reference
from cri_shim.image.registry.hosts import load_endpoints
from tests.fuzz import assert_sound

_DIGEST = b"sha256:" + b"ab" * 32
SEEDS = [
    b"busybox",
    b"docker.io/library/busybox:latest",
    b"registry.example:5000/team/app_a/b-c__d.e:v1.2@" + _DIGEST,
    b"[::1]:5000/app@" + _DIGEST,
    b"localhost/App",
    b"index.docker.io/a:1",
    b"ab" * 32,
    b"[::::]/a",
]
WORDS = [b"/", b":", b"@", b"[", b"]", b"..", b"__", b"localhost", b":5000", _DIGEST, b"\xc3\xa9"]
MAX_BYTES = MAX_REFERENCE_LENGTH + 50


def fuzz(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    try:
        reference = parse_reference(text)
    except BadImageReferenceError as error:
        assert_sound(error)
        return
    spelt = str(reference)
    assert parse_reference(spelt) == reference, spelt
    assert len(reference.repository) <= MAX_NAME_LENGTH
    assert spelt.isascii()
    assert spelt.isprintable()
    assert " " not in spelt
    for part in reference.path.split("/"):
        assert part not in ("", ".", ".."), spelt
    [endpoint] = load_endpoints(None, reference.domain)
    assert endpoint.is_registry
    assert endpoint.url.endswith("/v2")
    assert "/" not in endpoint.host
