from __future__ import annotations

import json

import pytest

from cri_shim.cni.false_alarms import (
    is_about_a_missing_family,
    is_about_missing_rules,
    without_bridge_address,
)
from cri_shim.cni.result import Result, parse_result
from cri_shim.errors import CniPluginError

MADE = {
    "cniVersion": "1.0.0",
    "interfaces": [
        {"name": "cni0", "mac": "02:00:00:00:00:01"},
        {"name": "veth1", "mac": "02:00:00:00:00:02"},
        {"name": "cni0", "mac": "02:00:00:00:00:03", "sandbox": "/run/netns/x"},
    ],
    "ips": [{"address": "10.1.0.2/24", "interface": 2}],
}
BRIDGE = "Bridge interface cni0 Mac doesn't match: 02:00:00:00:00:01"
PORTMAP = "could not check ipv6 dnat: chain CNI-DN-1 not found in iptables table nat"


def complaint(plugin: str, words: str) -> CniPluginError:
    return CniPluginError(plugin, "CHECK", words, code=999)


def made(*addresses: str) -> Result:
    document = {"cniVersion": "1.0.0", "ips": [{"address": each} for each in addresses]}
    return parse_result(json.dumps(document).encode(), cni_version="1.0.0")


def test_a_bridges_own_address_is_not_asked_for_again_and_all_else_is() -> None:
    asked = without_bridge_address(complaint("bridge", BRIDGE), MADE)
    assert asked == {**MADE, "interfaces": [{"name": "cni0"}, *MADE["interfaces"][1:]]}
    assert MADE["interfaces"][0] == {"name": "cni0", "mac": "02:00:00:00:00:01"}


@pytest.mark.parametrize(
    ("plugin", "words"),
    [
        ("ptp", BRIDGE),
        ("bridge", "Interface veth1 Mac doesn't match: 02:00:00:00:00:02 not found"),
        ("bridge", "Interface name cni0 not found"),
    ],
)
def test_other_complaints_of_a_bridge_count(plugin: str, words: str) -> None:
    assert without_bridge_address(complaint(plugin, words), MADE) is None


@pytest.mark.parametrize(
    ("plugin", "words", "addresses", "false_alarm"),
    [
        ("portmap", PORTMAP, ("10.1.0.2/24",), True),
        ("portmap", PORTMAP, ("10.1.0.2/24", "fd00::2/64"), False),
        ("portmap", PORTMAP.replace("6", "4"), ("10.1.0.2/24",), False),
        ("portmap", PORTMAP.replace("6", "4"), ("fd00::2/64",), True),
        ("portmap", "chain CNI-HOSTPORT-DNAT not found", ("10.1.0.2/24",), False),
        ("mine", PORTMAP, ("10.1.0.2/24",), False),
    ],
)
def test_rules_are_missed_only_for_families_that_the_pod_has(
    plugin: str, words: str, addresses: tuple[str, ...], *, false_alarm: bool
) -> None:
    error = complaint(plugin, words)
    assert is_about_a_missing_family(error, made(*addresses)) is false_alarm


@pytest.mark.parametrize(
    ("plugin", "words", "gone"),
    [
        (
            "bridge",
            "exit status 2: iptables v1.8.9 (nf_tables): Chain 'CNI-1' does not exist",
            True,
        ),
        ("ptp", "exit status 2: iptables v1.8.9 (nf_tables): Chain 'CNI-1' does not exist", True),
        ("bridge", "iptables v1.8.9 (legacy): Couldn't load target `CNI-1':No such file", True),
        ("portmap", "iptables v1.8.9 (nf_tables): Chain 'CNI-1' does not exist", False),
        ("bridge", "iptables v1.8.9 (nf_tables): Chain 'POSTROUTING' does not exist", False),
        ("bridge", "iptables: another app is currently holding the xtables lock", False),
    ],
)
def test_rules_that_are_gone_need_not_be_taken_away(plugin: str, words: str, gone: bool) -> None:
    assert is_about_missing_rules(CniPluginError(plugin, "DEL", words, code=999)) is gone
