"""What a CNI plugin prints: the result of ADD in each of its forms, and error documents."""

from __future__ import annotations

import msgspec

from cri_shim.cni.conf import KNOWN_VERSIONS
from cri_shim.cni.result import (
    ResultError,
    build_result_document,
    parse_failure,
    parse_result,
    parse_result_document,
    pod_ips,
)
from tests.fuzz import assert_sound

SEEDS = [
    b'{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"/run/netns/x","mtu":9000}],'
    b'"ips":[{"address":"10.1.0.2/16","gateway":"10.1.0.1","interface":0},{"address":"fd00::2/64"}],'
    b'"routes":[{"dst":"0.0.0.0/0","gw":"10.1.0.1","table":7}],"dns":{"nameservers":["10.1.0.1"],"search":["a"]}}',
    b'{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.1.0.2/16","interface":-1}],"dns":{}}',
    b'{"cniVersion":"0.3.1","interfaces":[{"name":"veth0"}],"ips":[]}',
    b'{"cniVersion":"0.2.0","ip4":{"ip":"10.1.0.2/24","gateway":"10.1.0.1","routes":[{"dst":"0.0.0.0/0"}]},'
    b'"ip6":{"ip":"fd00::2/64"},"dns":{"domain":"x"}}',
    b'{"ips":null,"interfaces":null,"routes":null,"dns":null}',
    b'{"cniVersion":"1.0.0","code":11,"msg":"try again","details":"\\u001b[2J"}',
]
WORDS = [
    *(b'"cniVersion":"', b'"0.2.0"', b'"1.0.0"', b'"interface":', b"-1", b"99999999999999999999"),
    *(b'"address":"', b"10.0.0.1/33", b"::ffff:1.2.3.4/96", b"fe80::1%eth0/64", b"null", b"[[[["),
    *(b'"ip4":{', b'"routes":[', b'"dst":"', b"\\ud800", b"\xff"),
]


def fuzz(data: bytes) -> None:
    failure = parse_failure(data)
    if failure is not None:
        assert isinstance(failure.code, int)
    try:
        result = parse_result(data, cni_version="1.0.0")
    except ResultError as error:
        assert_sound(error, "it")
        return
    assert result.cni_version in KNOWN_VERSIONS
    for address in result.ips:
        assert address.interface is None or 0 <= address.interface < len(result.interfaces)
    ips = pod_ips(result, "eth0")
    assert len(set(ips)) == len(ips) <= len(result.ips)
    for version in KNOWN_VERSIONS:
        # The next plugin, and our own result cache, must be able to read what is made of it.
        document = build_result_document(result, cni_version=version)
        assert document["cniVersion"] == version
        again = parse_result_document(
            msgspec.json.decode(msgspec.json.encode(document)), cni_version=version
        )
        if not version.startswith(("0.1", "0.2")):
            assert [ip.address for ip in again.ips] == [ip.address for ip in result.ips]
