from __future__ import annotations

from pathlib import Path

import pytest

from cri_shim.errors import ConfigError
from cri_shim.image.registry.hosts import (
    Capability,
    Endpoint,
    is_loopback,
    load_endpoints,
    parse_hosts,
)

FILE = Path("/certs/r.example/hosts.toml")
EVERY = frozenset(Capability)


def parse(text: str, domain: str = "r.example", path: Path = FILE) -> list[Endpoint]:
    return parse_hosts(text.encode(), path, domain)


@pytest.mark.parametrize(
    ("domain", "url"),
    [
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("r.example:5000", "https://r.example:5000/v2"),
        ("localhost", "http://localhost/v2"),
        ("127.3.2.1:5000", "http://127.3.2.1:5000/v2"),
        ("[::1]:5000", "http://[::1]:5000/v2"),
        ("[2001:db8::1]", "https://[2001:db8::1]/v2"),
    ],
)
def test_without_a_file_the_registry_is_asked(tmp_path: Path, domain: str, url: str) -> None:
    expected = [Endpoint(url, is_registry=True)]
    assert load_endpoints(None, domain) == expected
    assert load_endpoints(tmp_path, domain) == expected


def test_mirrors_come_in_the_order_of_the_file_and_the_server_last() -> None:
    text = """
        server = "https://upstream.example"
        [host."http://b.example:5000"]
          capabilities = ["pull"]
        [host."a.example/proxy/"]
        [host."https://c.example/v2"]
    """
    assert [(e.url, e.is_registry, e.capabilities) for e in parse(text)] == [
        ("http://b.example:5000/v2", False, {Capability.PULL}),
        ("https://a.example/proxy/v2", False, EVERY),
        ("https://c.example/v2", False, EVERY),
        ("https://upstream.example/v2", True, EVERY),
    ]


def test_every_key_is_understood() -> None:
    text = """
        ca = "own.pem"
        dial_timeout = "5s"
        [host."https://m.example/root"]
          ca = ["ca.pem", "/etc/other.pem"]
          client = [["c.pem", "c.key"], "both.pem", ["single.pem", ""]]
          skip_verify = true
          override_path = true
          capabilities = ["pull", "resolve", "push"]
          [host."https://m.example/root".header]
            X-One = "1"
            X-Two = ["2", "3"]
    """
    mirror, server = parse(text)
    assert mirror == Endpoint(
        "https://m.example/root",
        ca=(FILE.parent / "ca.pem", Path("/etc/other.pem")),
        client=(
            (FILE.parent / "c.pem", FILE.parent / "c.key"),
            (FILE.parent / "both.pem", None),
            (FILE.parent / "single.pem", None),
        ),
        skip_verify=True,
        headers=(("X-One", "1"), ("X-Two", "2"), ("X-Two", "3")),
    )
    assert server == Endpoint(
        "https://r.example/v2", is_registry=True, ca=(FILE.parent / "own.pem",)
    )


def test_a_host_that_is_the_registry_itself_is_asked_once_and_trusted_with_credentials() -> None:
    text = """
        server = "http://r.example:80"
        [host."http://r.example:80"]
          capabilities = ["pull"]
          skip_verify = true
    """
    [only] = parse(text, "r.example:80")
    assert only == Endpoint("http://r.example:80/v2", is_registry=True, skip_verify=True)


def test_docker_hub_may_be_called_by_its_name() -> None:
    [only] = parse('server = "https://docker.io"', "docker.io")
    assert only == Endpoint("https://registry-1.docker.io/v2", is_registry=True)


def test_a_server_for_all_registries_is_trusted_with_no_credentials_but_its_own() -> None:
    path = Path("/certs/_default/hosts.toml")
    text = 'server = "https://all.example"'
    [other] = parse(text, "r.example", path)
    [own] = parse(text, "all.example", path)
    assert (other.is_registry, own.is_registry) == (False, True)


def test_a_header_is_not_in_the_repr() -> None:
    [only] = parse('[header]\nAuthorization = "hunter2"')
    assert ("Authorization", "hunter2") in only.headers
    assert "hunter2" not in repr(only)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("server = ", "Invalid"),
        ('server = "ftp://r.example"', "server: 'ftp://r.example': expected http"),
        ('server = "https://u:p@r.example"', "server: credentials in the URL are not allowed"),
        ('[host."https://"]', "expected http"),
        ('[host."https://m:99999"]', "expected http"),
        ('[host."https://m?x=1"]', "expected http"),
        ('[host."https://m?"]', "expected http"),
        ('[host."https://m#"]', "expected http"),
        ('[host."https://m/a b"]', "expected http"),
        ('[host."https://[::1]0:/v2"]', "expected http"),
        ('[host."["]', "expected http"),
        ('[host."https://u:p@m?"]', "'m?': expected http"),
        ('[host."https://u:p@m"]', "credentials in the URL are not allowed"),
        ('[host."https://\\u001b[2J"]', 'host."https://?[2J": '),
        ('[host."https://m"]\ncapabilities = ["fly"]', "allowed are pull, resolve, push"),
        ('[host."https://m"]\nskip_verify = "yes"', "Expected `bool`"),
        ('client = [["a", "b", "c"]]', "server: client: 3 file names"),
        ('[header]\nHost = "x"', "header: 'Host' is invalid or reserved"),
        ('[header]\n"X-A: b" = "x"', "is invalid or reserved"),
        ('[header]\nX-A = "a\\r\\nEvil: b"', "control characters"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value).startswith(f"{FILE}: ")
    assert said in str(caught.value)
    assert "u:p@" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_the_directory_of_a_registry_is_found_in_both_spellings(tmp_path: Path) -> None:
    def found(domain: str) -> str:
        return load_endpoints(tmp_path, domain)[0].url

    for name in ("_default", "r.example", "r.example:5000", "r.example_5001_"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "hosts.toml").write_text(f'[host."http://{name.strip("_")[:4]}.m"]')
        (tmp_path / name / "hosts.toml").write_text(
            f'[host."http://of/{name.replace(":", "-").strip("_")}"]'
        )
    assert found("r.example") == "http://of/r.example/v2"
    assert found("r.example:5000") == "http://of/r.example-5000/v2"
    assert found("r.example:5001") == "http://of/r.example_5001/v2"
    assert found("other.example") == "http://of/default/v2"


def test_a_directory_without_a_file_keeps_the_default_away(tmp_path: Path) -> None:
    for name in ("_default", "r.example"):
        (tmp_path / name).mkdir()
    (tmp_path / "_default" / "hosts.toml").write_text('[host."http://all.example"]')
    assert load_endpoints(tmp_path, "r.example") == [
        Endpoint("https://r.example/v2", is_registry=True)
    ]


def test_a_file_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "r.example" / "hosts.toml").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"hosts\.toml"):
        load_endpoints(tmp_path, "r.example")


def test_the_origin_shows_plain_http() -> None:
    assert Endpoint("https://r.example:5000/v2").origin == "r.example:5000"
    assert Endpoint("http://r.example/v2").origin == "http://r.example"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost:5000", True),
        ("127.0.0.1", True),
        ("[::1]", True),
        ("localhost.example", False),
        ("10.0.0.1", False),
        ("r.example", False),
    ],
)
def test_the_loopback_is_known(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
