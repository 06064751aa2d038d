"""Docker's `config.json`: whose credentials are whose."""

from __future__ import annotations

from pathlib import Path

from cri_shim.errors import ConfigError
from cri_shim.image.reference import parse_reference
from cri_shim.image.registry.credentials import parse_auth_file, registry_host, same_registry
from tests.fuzz import assert_sound

SEEDS = [
    b'{"auths":{"https://index.docker.io/v1/":{"auth":"bWU6aHVudGVyMg=="}}}',
    b'{"auths":{"r.example":{"username":"me","password":"hunter2"},"r.example/team":{"auth":"YTpi"}}}',
    b'{"auths":{"r.example:5000":{"identitytoken":"t"},"https://r.example/v2/":{"registrytoken":"x"}}}',
    b'{"auths":{"":{"auth":"Og=="}},"credHelpers":{"r.example":"x"},"credsStore":"y"}',
    b'{"auths":{"r.example":{"auth":"!"}}}',
    b'{"auths":{"\xff":{}}}',
]
WORDS = [
    b'"auth":"',
    b'"r.example',
    b"/team",
    b"https://",
    b"@",
    b":5000",
    b'{"auths":{',
    b"null",
    b"\\ud800",
]
_PATH = Path("/root/.docker/config.json")
_REFERENCES = [
    parse_reference(name) for name in ("r.example/team/app", "r.example:5000/app", "busybox")
]


def fuzz(data: bytes) -> None:
    for reference in _REFERENCES:
        try:
            found = parse_auth_file(data, _PATH, reference)
        except ConfigError as error:
            assert_sound(error, "images.auth_file: ")
            continue
        if found is None:
            continue
        assert found.usable
        assert found.fit(reference.domain)
        assert found.registry == reference.domain
        assert repr(found) == f"Credentials(for {reference.domain})"
        assert len(found.key()) == 24
    text = data.decode("utf-8", "replace")
    assert same_registry(text, text)
    assert "/" not in registry_host(text)
