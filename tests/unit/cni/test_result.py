from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.cni.conf import KNOWN_VERSIONS
from cri_shim.cni.result import (
    Result,
    ResultError,
    build_result_document,
    parse_failure,
    parse_result,
    parse_result_document,
    pod_ips,
)

MODERN: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "interfaces": [
        {"name": "cni0", "mac": "0a:00:00:00:00:01"},
        {"name": "veth1"},
        {"name": "eth0", "mac": "0a:00:00:00:00:02", "sandbox": "/run/netns/x"},
    ],
    "ips": [
        {"address": "10.1.0.5/24", "gateway": "10.1.0.1", "interface": 2},
        {"address": "fd00::5/64", "gateway": "fd00::1", "interface": 2},
    ],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd00::1"}],
    "dns": {"nameservers": ["10.1.0.1"], "search": ["local"]},
    "vendor": {"x": 1},
}
LEGACY: dict[str, Any] = {
    "cniVersion": "0.2.0",
    "ip4": {"ip": "10.1.0.5/24", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
    "ip6": {"ip": "fd00::5/64", "routes": [{"dst": "::/0", "gw": "fd00::1"}]},
    "dns": {"nameservers": ["10.1.0.1"]},
}


def parse(document: object, version: str = "1.0.0") -> Result:
    return parse_result(json.dumps(document).encode(), cni_version=version)


def test_a_modern_result_is_read_whole() -> None:
    result = parse(MODERN)
    assert [interface.name for interface in result.interfaces] == ["cni0", "veth1", "eth0"]
    assert [str(ip.address) for ip in result.ips] == ["10.1.0.5/24", "fd00::5/64"]
    assert [route.dst for route in result.routes] == ["0.0.0.0/0", "::/0"]
    assert result.dns.nameservers == ["10.1.0.1"]


def test_fields_that_are_unknown_are_kept_for_the_next_plugin() -> None:
    assert parse(MODERN).raw == MODERN


def test_a_result_of_0_2_gives_its_addresses_and_routes() -> None:
    result = parse(LEGACY)
    assert [str(ip.address) for ip in result.ips] == ["10.1.0.5/24", "fd00::5/64"]
    assert [ip.gateway for ip in result.ips] == ["10.1.0.1", ""]
    assert [route.dst for route in result.routes] == ["0.0.0.0/0", "::/0"]
    assert pod_ips(result, "eth0") == ("10.1.0.5", "fd00::5")


def test_a_result_without_a_version_is_of_the_version_asked_for() -> None:
    result = parse({"ip4": {"ip": "10.1.0.5/24"}}, "0.1.0")
    assert result.cni_version == result.raw["cniVersion"] == "0.1.0"
    assert pod_ips(result, "eth0") == ("10.1.0.5",)


@pytest.mark.parametrize("version", ["0.1.0", "0.3.1", "0.4.0", "1.1.0"])
def test_a_result_may_be_empty(version: str) -> None:
    empty: dict[str, object] = {
        "interfaces": None,
        "ips": None,
        "routes": None,
        "dns": {},
        "ip4": None,
    }
    assert parse(empty, version).ips == ()


def test_minus_one_means_no_interface() -> None:
    document = {"cniVersion": "0.3.0", "ips": [{"address": "10.0.0.2/8", "interface": -1}]}
    assert parse(document).ips[0].interface is None


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ([], "not a JSON object"),
        ({"cniVersion": "7.0.0"}, "unknown cniVersion '7.0.0'"),
        ({"cniVersion": 1}, "unknown cniVersion 1"),
        ({"ips": [{"address": "10.0.0.2"}]}, r"ips\[0\]: '10.0.0.2' has no prefix length"),
        ({"ips": [{"address": "10.0.0.999/8"}]}, r"ips\[0\]"),
        ({"ips": [{"address": "10.0.0.2/8", "gateway": "x"}]}, r"ips\[0\]"),
        ({"ips": [{"address": "10.0.0.2/8", "interface": 0}]}, r"ips\[0\]: interface 0 of 0"),
        ({"ips": [{}]}, "missing required field `address`"),
        ({"ips": "10.0.0.2/8"}, "malformed"),
        ({"interfaces": [{"mac": "x"}]}, "missing required field `name`"),
        ({"cniVersion": "0.2.0", "ip4": {"ip": 7}}, "malformed"),
    ],
)
def test_a_malformed_result_is_refused_with_the_place(document: object, complaint: str) -> None:
    with pytest.raises(ResultError, match=complaint):
        parse(document)


@pytest.mark.parametrize("data", [b"", b" \n"])
def test_no_output_is_no_result(data: bytes) -> None:
    with pytest.raises(ResultError, match="printed no result"):
        parse_result(data, cni_version="1.0.0")


JSON_VALUES = st.recursive(
    st.none() | st.integers() | st.sampled_from(["1.0.0", "0.2.0", "10.0.0.1/8", "fe80::1%x/64"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["cniVersion", "ips", "ip4", "ip", "address", "interface", "dns"]),
            inner,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["cniVersion", "ips", "ip4", "ip6", "dns"]), JSON_VALUES))
def test_any_object_gives_a_result_or_a_result_error(document: dict[str, Any]) -> None:
    try:
        result = parse(document)
    except ResultError:
        return
    assert isinstance(pod_ips(result, "eth0"), tuple)


@given(st.binary(max_size=100))
def test_any_bytes_give_a_result_or_a_result_error(data: bytes) -> None:
    parse_failure(data)
    with pytest.raises(ResultError):
        parse_result(b"[" + data, cni_version="1.0.0")


def test_an_error_document_gives_code_message_and_details() -> None:
    data = b'{"cniVersion":"1.0.0","code":7,"msg":"no","details":"why","extra":1}'
    failure = parse_failure(data)
    assert failure is not None
    assert (failure.code, failure.msg, failure.details) == (7, "no", "why")


@pytest.mark.parametrize(
    "data", [b"", b"panic: oh", b"{}", b'{"msg":"x"}', b'{"code":"7","msg":"x"}', b'{"code":0}']
)
def test_anything_else_is_no_error_document(data: bytes) -> None:
    assert parse_failure(data) is None


def test_pod_ips_are_those_of_the_sandbox_interface_in_the_order_of_the_plugin() -> None:
    document = {
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "cni0"},
            {"name": "eth0", "sandbox": "/x"},
            {"name": "eth1", "sandbox": "/x"},
        ],
        "ips": [
            {"address": "10.9.9.9/24", "interface": 0},
            {"address": "fd00::5/64", "interface": 1},
            {"address": "10.1.0.5/24", "interface": 1},
            {"address": "10.2.0.5/24", "interface": 2},
            {"address": "10.1.0.5/16", "interface": 1},
        ],
    }
    assert pod_ips(parse(document), "eth0") == ("fd00::5", "10.1.0.5")
    assert pod_ips(parse(document), "eth1") == ("10.2.0.5",)


def test_addresses_that_name_no_interface_are_the_pods() -> None:
    document = {"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.1.0.5/24"}]}
    assert pod_ips(parse(document), "eth0") == ("10.1.0.5",)


def test_within_one_form_a_result_stays_as_the_plugin_wrote_it() -> None:
    assert build_result_document(parse(MODERN), cni_version="1.1.0") == {
        **MODERN,
        "cniVersion": "1.1.0",
    }


def test_a_result_of_0_4_names_the_family_of_each_address() -> None:
    document = build_result_document(parse(MODERN), cni_version="0.4.0")
    assert [ip["version"] for ip in document["ips"]] == ["4", "6"]
    assert document["interfaces"][1] == {"name": "veth1"}
    assert document["cniVersion"] == "0.4.0"


def test_a_result_of_1_0_does_not_name_the_family() -> None:
    older = build_result_document(parse(MODERN), cni_version="0.3.1")
    document = build_result_document(parse(older), cni_version="1.0.0")
    assert document["ips"] == MODERN["ips"]


@pytest.mark.parametrize("version", ["0.2.0", "0.3.0", "0.4.0", "1.0.0", "1.1.0"])
@pytest.mark.parametrize("document", [MODERN, LEGACY])
def test_converting_loses_no_address_route_or_server(
    document: dict[str, Any], version: str
) -> None:
    before = parse(document)
    after = parse_result_document(
        build_result_document(before, cni_version=version), cni_version=version
    )
    assert after.cni_version == version
    assert [ip.address for ip in after.ips] == [ip.address for ip in before.ips]
    assert [ip.gateway for ip in after.ips] == [ip.gateway for ip in before.ips]
    assert after.routes == before.routes
    assert after.dns.nameservers == before.dns.nameservers


def test_the_early_form_holds_one_address_of_each_family() -> None:
    document = {
        "cniVersion": "1.0.0",
        "ips": [{"address": "10.0.0.2/8"}, {"address": "10.0.0.3/8"}],
    }
    assert build_result_document(parse(document), cni_version="0.2.0")["ip4"]["ip"] == "10.0.0.2/8"


def test_an_empty_destination_survives_every_conversion() -> None:
    data = b'{"cniVersion":"0.2.0","ip4":{"ip":"10.1.0.2/24","routes":[{"dst":""}]}}'
    result = parse_result(data, cni_version="0.2.0")
    for version in KNOWN_VERSIONS:
        document = build_result_document(result, cni_version=version)
        assert parse_result_document(document, cni_version=version).routes == result.routes
