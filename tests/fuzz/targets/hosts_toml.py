"""`hosts.toml`: which servers, and which of them may have credentials."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from yarl import URL

from cri_shim.errors import ConfigError
from cri_shim.image.registry.hosts import default_server, parse_hosts
from tests.fuzz import assert_sound

_FILE = Path("/certs.d/r.example/hosts.toml")
_DEFAULT_FILE = Path("/certs.d/_default/hosts.toml")
SEEDS = [
    b'server = "https://r.example"\n[host."https://mirror.example:5000/v2"]\n'
    b'capabilities = ["pull", "resolve"]\nca = ["a.pem"]\nclient = [["c.pem", "k.pem"]]\n'
    b'skip_verify = true\noverride_path = true\n[host."https://mirror.example:5000/v2".header]\nX-A = "b"\n',
    b'[host."http://r.example"]\n[host."[::1]:5000"]\nclient = "both.pem"\n',
    b'server = "docker.io"\nca = "x"\n',
    b'server = "["\n',
    b'[host."http://a:b@c"]',
    b'[host."a"]\nheader = {Host = "x"}',
]
WORDS = [
    *(b'[host."', b'"]\n', b"http://", b"https://", b"[::1]", b":99999", b"@", b"?", b"#", b"/v2"),
    *(
        b"capabilities = [",
        b"client = [[",
        b"header = {",
        b"server = ",
        b"\\u0000",
        b"\\n",
        b"true",
    ),
]


def fuzz(data: bytes) -> None:
    for path in (_FILE, _DEFAULT_FILE):
        try:
            endpoints = parse_hosts(data, path, "r.example")
        except ConfigError as error:
            assert_sound(error, str(path))
            continue
        assert endpoints
        assert len({endpoint.url for endpoint in endpoints}) == len(endpoints)
        for endpoint in endpoints:
            parts = urlsplit(endpoint.url)
            assert parts.scheme in ("http", "https")
            assert parts.hostname
            assert parts.username is None
            assert not parts.query
            assert endpoint.url.isprintable()
            assert endpoint.origin
            asked = URL(f"{endpoint.url}/a/blobs/b", encoded=True)
            assert (asked.raw_host or "").lower() == parts.hostname
            for name, value in endpoint.headers:
                assert name.isascii()
                assert value.isprintable()
            if endpoint.is_registry and path is _DEFAULT_FILE:
                assert endpoint.host == urlsplit(default_server("r.example")).netloc
