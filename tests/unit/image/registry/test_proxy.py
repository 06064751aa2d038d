from __future__ import annotations

import pytest

from cri_shim.image.registry.proxy import proxy_for

PROXIES = {"HTTPS_PROXY": "http://secure.proxy:3128", "http_proxy": "plain.proxy:8080"}


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("https://r.example/v2/", "http://secure.proxy:3128"),
        ("http://r.example/v2/", "http://plain.proxy:8080"),
        ("http://127.0.0.1:5000/v2/", None),
        ("http://localhost/v2/", None),
        ("https://[::1]:5000/v2/", None),
    ],
)
def test_each_scheme_has_its_proxy_and_the_loopback_none(url: str, proxy: str | None) -> None:
    assert proxy_for(url, PROXIES) == proxy


def test_without_a_setting_there_is_none() -> None:
    assert proxy_for("https://r.example/", {}) is None
    assert proxy_for("https://r.example/", {"HTTPS_PROXY": ""}) is None


@pytest.mark.parametrize(
    ("excepted", "url", "direct"),
    [
        ("*", "https://r.example/", True),
        ("r.example", "https://r.example/", True),
        ("r.example", "https://sub.r.example/", True),
        ("r.example", "https://other.example/", False),
        ("r.example", "https://bar.example/", False),
        (".r.example", "https://r.example/", False),
        (".r.example", "https://sub.r.example/", True),
        ("*.r.example", "https://sub.r.example/", True),
        ("R.EXAMPLE", "https://r.example/", True),
        ("r.example:443", "https://r.example/", True),
        ("r.example:444", "https://r.example/", False),
        ("a.example, r.example", "https://r.example/", True),
        ("10.0.0.0/8", "https://10.1.2.3:5000/", True),
        ("10.0.0.0/8", "https://11.1.2.3/", False),
        ("10.1.2.3", "https://10.1.2.3/", True),
        ("10.1.2.3:5000", "https://10.1.2.3:5000/", True),
        ("fd00::/8", "https://[fd00::1]:5000/", True),
        ("[fd00::1]:5000", "https://[fd00::1]:5000/", True),
        ("", "https://r.example/", False),
    ],
)
def test_exceptions_are_hosts_domains_addresses_and_networks(
    excepted: str, url: str, direct: bool
) -> None:
    assert (proxy_for(url, {**PROXIES, "no_proxy": excepted}) is None) is direct
