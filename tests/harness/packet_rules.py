"""The packet filter's rules as comparable lines.

nft shows what nft and iptables-nft wrote; rules of the legacy iptables backend are asked for where it was ever used.
Handles, counters and the order of tables say nothing and are left out.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

FURNITURE = frozenset({
    "CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-SETMARK", "CNI-FORWARD", "CNI-ADMIN",
})  # fmt: skip
"""Chains that portmap and firewall make once per node and keep."""
_ANYTHING_GOES = frozenset({"CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-SETMARK"})
"""Furniture whose rules are all the node's; the others hold rules per pod."""
_LEGACY_TABLES = (
    ("ip_tables_names", "iptables-legacy-save"),
    ("ip6_tables_names", "ip6tables-legacy-save"),
)


def current() -> list[str]:
    """One line for each chain, set, element and rule that is not furniture."""
    shown = subprocess.run(
        ["nft", "-j", "list", "ruleset"], capture_output=True, text=True, check=True
    ).stdout
    lines = list(canonical(json.loads(shown))) if shown.strip() else []
    for names, command in _LEGACY_TABLES:
        tables = Path("/proc/thread-self/net") / names
        if tables.exists() and tables.read_text().strip():
            saved = subprocess.run([command], capture_output=True, text=True, check=True).stdout
            lines += canonical_legacy(saved, command)
    return lines


def canonical(document: dict[str, Any]) -> Iterator[str]:
    """The lines of what `nft -j list ruleset` shows."""
    for item in document["nftables"]:
        (kind, body), *_ = item.items()
        where = f"{body.get('family', '')} {body.get('table', '')}"
        if kind == "chain":
            # Base chains are made with their table, by whoever asks first.
            if "hook" not in body and body["name"] not in FURNITURE:
                yield f"chain {where} {body['name']}"
        elif kind == "rule":
            text = json.dumps(_without_counts(body.get("expr", [])), sort_keys=True)
            if not _is_furniture(body["chain"], _jump_target(body.get("expr", []))):
                yield f"rule {where} {body['chain']}: {text} {body.get('comment', '')}".rstrip()
        elif kind not in ("metainfo", "table"):
            yield f"{kind} {where} {json.dumps(_without_counts(body), sort_keys=True)}"


def canonical_legacy(saved: str, command: str) -> Iterator[str]:
    """The lines of what `iptables-legacy-save` shows."""
    for line in saved.splitlines():
        if line.startswith(":"):
            chain, policy, *_ = line[1:].split()
            if policy == "-" and chain not in FURNITURE:
                yield f"chain {command} {chain}"
        elif line.startswith("-A "):
            words = line.split()
            target = words[words.index("-j") + 1] if "-j" in words else None
            if not _is_furniture(words[1], target):
                yield f"rule {command} {line}"


def _is_furniture(chain: str, target: str | None) -> bool:
    return chain in _ANYTHING_GOES or target in FURNITURE


def _jump_target(expressions: list[Any]) -> str | None:
    for expression in expressions:
        for verdict in ("jump", "goto"):
            if verdict in expression:
                return str(expression[verdict]["target"])
    return None


def _without_counts(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_counts(item) for item in value]
    if isinstance(value, dict):
        return {
            key: None if key == "counter" else _without_counts(item)
            for key, item in value.items()
            if key != "handle"
        }
    return value
