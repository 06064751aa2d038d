"""References: what is normalised to what, and what is refused with which reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.errors import BadImageReferenceError
from cri_shim.image.reference import Reference, is_digest, parse_reference

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("library/busybox", "docker.io/library/busybox:latest"),
        ("someone/app:v1", "docker.io/someone/app:v1"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
        ("quay.io/app", "quay.io/app:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:1", "localhost:5000/app:1"),
        ("host:5000/a/b/c", "host:5000/a/b/c:latest"),
        ("UPPER/app", "UPPER/app:latest"),
        ("[fd00::1]:5000/app:2", "[fd00::1]:5000/app:2"),
        ("[::1]/app", "[::1]/app:latest"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}"),
        (f"r.example:443/a:t@{DIGEST}", f"r.example:443/a:t@{DIGEST}"),
        ("a/b__c.d-e--f_g", "docker.io/a/b__c.d-e--f_g:latest"),
        ("registry.k8s.io/e2e-test-images/busybox:1.29-2",) * 2,
    ],
)
def test_a_reference_is_normalised_as_docker_does(text: str, normalised: str) -> None:
    assert str(parse_reference(text)) == normalised


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("Busybox", "must be lower case"),
        ("a/Busybox", "must be lower case"),
        ("busybox:", "tag ''"),
        ("busybox:-x", "tag '-x'"),
        ("busybox:" + "t" * 129, "tag"),
        ("busybox@sha256:abc", "digest"),
        (f"busybox@{DIGEST.upper()}", "digest"),
        ("busybox@sha512:" + "a" * 128, "digest"),
        ("busybox@", "digest"),
        ("a//b", "missing, or empty"),
        ("/a", "missing, or empty"),
        ("a/", "missing, or empty"),
        ("host.example/", "missing, or empty"),
        ("host_a.example/app", "registry host"),
        ("host:port/app", "registry host"),
        ("host:70000/app", "port 70000"),
        ("host:0/app", "port 0"),
        ("fd00::1/app", "registry host"),
        ("[fd00::1::2]:5000/app", "not an IPv6 address"),
        ("[:::]/app", "not an IPv6 address"),
        ("[127.0.0.1]/app", "registry host"),
        ("a..b/c", "registry host"),
        ("a/b..c", "repository part 'b..c'"),
        ("a/-b", "repository part '-b'"),
        ("a/b___c", "repository part"),
        ("../escape", "registry host"),
        ("a b", "repository part"),
        ("busybox\n", "repository part"),
        ("busybox:1\n", "tag"),
        ("a/" + "b" * 250, "exceeds 255"),
        ("ab" * 32, "image ID"),
        ("x" * 2000, "longer than"),
    ],
)
def test_a_bad_reference_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(BadImageReferenceError, match=reason):
        parse_reference(text)


def test_a_reference_offers_the_forms_that_cri_lists() -> None:
    both = parse_reference(f"busybox:1@{DIGEST}")
    assert both.tagged == "docker.io/library/busybox:1"
    assert both.digested == f"docker.io/library/busybox@{DIGEST}"
    assert parse_reference("busybox").digested is None
    assert both.with_digest("sha256:" + "00" * 32).tagged is None


@given(st.text())
def test_any_text_is_parsed_or_refused_and_what_is_parsed_is_stable(text: str) -> None:
    try:
        reference = parse_reference(text)
    except BadImageReferenceError:
        return
    assert parse_reference(str(reference)) == reference


@given(
    st.from_regex(r"[a-z0-9]{1,8}\.example(:[1-9][0-9]{0,3})?", fullmatch=True),
    st.from_regex(r"[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,3}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True),
)
def test_what_is_built_from_the_grammar_comes_back(domain: str, path: str, tag: str) -> None:
    assert parse_reference(f"{domain}/{path}:{tag}") == Reference(domain, path, tag)


def test_only_sha256_is_a_digest() -> None:
    assert is_digest(DIGEST)
    assert not is_digest(DIGEST + "\n")
    assert not is_digest("sha256:" + "AB" * 32)
