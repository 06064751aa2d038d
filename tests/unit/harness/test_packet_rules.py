"""Rules as nft and iptables-legacy-save show them, as comparable lines."""

from __future__ import annotations

from typing import Any

from tests.harness.packet_rules import canonical, canonical_legacy

POD = "CNI-DN-cf9f91892b3455514e5c1"


def chain(name: str, **more: Any) -> dict[str, Any]:
    return {"chain": {"family": "ip", "table": "nat", "name": name, "handle": 7, **more}}


def rule(in_chain: str, *expressions: dict[str, Any], handle: int = 1) -> dict[str, Any]:
    body = {"family": "ip", "table": "nat", "chain": in_chain, "handle": handle}
    return {"rule": {**body, "expr": list(expressions)}}


def jump(target: str) -> dict[str, Any]:
    return {"jump": {"target": target}}


def lines(*items: dict[str, Any]) -> list[str]:
    return list(canonical({"nftables": [{"metainfo": {"version": "1.0.6"}}, *items]}))


def test_an_empty_ruleset_has_no_lines() -> None:
    assert lines() == []


def test_handles_and_counters_do_not_matter() -> None:
    first = rule("c", {"counter": {"packets": 1, "bytes": 60}}, {"drop": None}, handle=3)
    second = rule("c", {"counter": {"packets": 9, "bytes": 99}}, {"drop": None}, handle=8)
    assert lines(first) == lines(second) != []


def test_a_pods_chain_and_the_jump_to_it_have_lines() -> None:
    assert lines(chain(POD), rule("CNI-HOSTPORT-DNAT", jump(POD))) == [
        f"chain ip nat {POD}",
        f'rule ip nat CNI-HOSTPORT-DNAT: [{{"jump": {{"target": "{POD}"}}}}]',
    ]


def test_what_plugins_keep_once_per_node_has_none() -> None:
    assert not lines(
        {"table": {"family": "ip", "name": "nat", "handle": 1}},
        chain("PREROUTING", type="nat", hook="prerouting", prio=-100, policy="accept"),
        chain("CNI-HOSTPORT-DNAT"),
        rule("PREROUTING", jump("CNI-HOSTPORT-DNAT")),
        rule("CNI-HOSTPORT-MASQ", {"xt": {"type": "target", "name": "MASQUERADE"}}),
    )


def test_a_comment_is_part_of_the_line() -> None:
    commented = rule("c", {"accept": None})
    commented["rule"]["comment"] = "net1"
    assert lines(commented) == ['rule ip nat c: [{"accept": null}] net1']


def test_sets_and_maps_have_lines_too() -> None:
    [line] = lines({"map": {"family": "ip", "table": "t", "name": "m", "handle": 2, "elem": [1]}})
    assert line.startswith("map ip t ")
    assert '"elem": [1]' in line


def test_legacy_rules_are_told_apart_in_the_same_way() -> None:
    saved = f"""\
*nat
:PREROUTING ACCEPT [5:300]
:CNI-HOSTPORT-DNAT - [0:0]
:{POD} - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A CNI-HOSTPORT-DNAT -p tcp --dport 8080 -j {POD}
COMMIT
"""
    assert list(canonical_legacy(saved, "save")) == [
        f"chain save {POD}",
        f"rule save -A CNI-HOSTPORT-DNAT -p tcp --dport 8080 -j {POD}",
    ]
