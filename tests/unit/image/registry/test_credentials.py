from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import ConfigError, InvalidArgumentError
from cri_shim.image.reference import parse_reference
from cri_shim.image.registry.credentials import (
    Credentials,
    credentials_of,
    load_auth_file,
    parse_auth_file,
    registry_host,
)

if TYPE_CHECKING:
    from pathlib import Path

PAIR = base64.b64encode(b"me:hunter2:x").decode()


def test_a_user_comes_from_fields_or_from_the_pair() -> None:
    assert credentials_of(username="me", password="hunter2") == Credentials("", "me", "hunter2")
    assert credentials_of(auth=PAIR) == Credentials("", "me", "hunter2:x")
    assert credentials_of(auth=PAIR, username="you", password="p") == Credentials("", "you", "p")


@pytest.mark.parametrize(
    "auth",
    [PAIR.rstrip("="), f"{PAIR}\n", f" {PAIR[:5]}\r\n{PAIR[5:]}", f"{PAIR.rstrip('=')}\n"],
    ids=["no padding", "newline", "lines", "neither"],
)
def test_a_pair_may_be_as_people_make_it(auth: str) -> None:
    assert credentials_of(auth=auth) == Credentials("", "me", "hunter2:x")


def test_nothing_to_show_is_none() -> None:
    assert credentials_of(server_address="r.example") is None


@pytest.mark.parametrize("auth", ["hunter2!", base64.b64encode(b"hunter2").decode(), "aHVudGVyMg"])
def test_an_unsound_pair_is_refused_without_being_shown(auth: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        credentials_of(auth=auth)
    assert "hunter2" not in str(caught.value)
    assert auth not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("https://index.docker.io/v1/", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("docker.io", "docker.io"),
        ("R.example:5000", "r.example:5000"),
        ("http://r.example/path", "r.example"),
        ("", ""),
    ],
)
def test_addresses_are_registries_of_references(address: str, host: str) -> None:
    assert registry_host(address) == host


def test_they_fit_their_registry_only() -> None:
    for_one = Credentials("r.example:5000", "me", "hunter2")
    assert for_one.fit("r.example:5000")
    assert not for_one.fit("r.example")
    assert not for_one.fit("docker.io")
    assert Credentials("", "me", "hunter2").fit("anything")


def test_neither_repr_nor_key_tells_a_secret() -> None:
    secret = Credentials("r.example", "me", "hunter2", "identity", "registry")
    for word in ("hunter2", "identity", "registry'", "me'"):
        assert word not in repr(secret)
    assert "hunter2" not in secret.key()


def test_keys_are_equal_for_equal_credentials_only() -> None:
    assert Credentials("", "a", "bc").key() == Credentials("", "a", "bc").key()
    assert Credentials("", "a", "bc").key() != Credentials("", "ab", "c").key()
    assert Credentials("", "a", "b").key() != Credentials("", "a", "", "b").key()


def write(path: Path, auths: object) -> Path:
    path.write_text(json.dumps({"auths": auths, "credsStore": "desktop", "HttpHeaders": {}}))
    return path


def test_the_entry_of_the_registry_and_the_longest_path_counts(tmp_path: Path) -> None:
    file = write(
        tmp_path / "config.json",
        {
            "https://index.docker.io/v1/": {"auth": PAIR},
            "r.example": {"username": "all", "password": "p"},
            "r.example/team": {"username": "team", "password": "p"},
            "r.example/team/ap": {"username": "other", "password": "p"},
            "other.example": {"identitytoken": "t"},
        },
    )

    def user(image: str) -> str | None:
        found = load_auth_file(file, parse_reference(image))
        return None if found is None else found.username

    assert user("busybox") == "me"
    assert user("r.example/x") == "all"
    assert user("r.example/team/app") == "team"
    assert user("nobody.example/x") is None
    found = load_auth_file(file, parse_reference("other.example/x"))
    assert found is not None
    assert (found.registry, found.identity_token) == ("other.example", "t")


def test_null_in_the_file_is_nothing(tmp_path: Path) -> None:
    def found(text: str) -> Credentials | None:
        reference = parse_reference("r.example/x")
        return parse_auth_file(text.encode(), tmp_path, reference)

    assert found('{"auths": null}') is None
    assert found('{"auths": {"r.example": null}}') is None
    entry = f'{{"auth": "{PAIR}", "username": null, "identitytoken": null, "x": null}}'
    assert found(f'{{"auths": {{"r.example": {entry}}}}}') == Credentials(
        "r.example", "me", "hunter2:x"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "config.json"),
        ('{"auths": {"r.example": {"auth": 5}}}', "config.json"),
        ('{"auths": {"r.example": {"auth": "hunter2!"}}}', "auths.r.example.auth"),
        ('{"auths": {"\\u001b:@r.example": {"auth": "hunter2!"}}}', r"auths\.\?:@r\.example\.auth"),
    ],
)
def test_an_unsound_file_is_named_and_not_shown(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        load_auth_file(file, parse_reference("r.example/x"))
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_no_utf8_is_unsound(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="utf-8"):
        parse_auth_file(b'{"auths":{"\xff":{}}}', tmp_path, parse_reference("r.example/x"))


def test_a_missing_file_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        load_auth_file(tmp_path / "nowhere", parse_reference("busybox"))
