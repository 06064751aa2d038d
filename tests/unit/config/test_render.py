from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cri_shim.config import Config, load_config
from cri_shim.config.decode import decode
from cri_shim.config.document import parse_document
from cri_shim.config.metric_groups import MetricGroup
from cri_shim.config.render import default_yaml, effective_yaml, reference_markdown, to_tree
from cri_shim.config.schema import keys_of

if TYPE_CHECKING:
    import msgspec

DOCS = Path(__file__).parents[3] / "docs" / "configuration.md"


def all_paths(section: type[msgspec.Struct], prefix: str = "") -> list[str]:
    paths = []
    for key in keys_of(section):
        path = prefix + key.name
        if key.section is not None:
            paths += all_paths(key.section, path + ".")
        else:
            paths.append(path)
            if key.entry_section is not None:
                paths += all_paths(key.entry_section, path + ".NAME.")
    return paths


def test_the_default_file_reads_back_to_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(default_yaml())
    assert load_config(file) == Config()


def test_the_default_file_says_every_key_and_nothing_else() -> None:
    def strip(tree: object) -> object:
        return {k: strip(v) for k, v in tree.items()} if isinstance(tree, dict) else tree

    tree = parse_document(default_yaml(), name="default")
    assert isinstance(tree, dict)
    assert list(tree) == [key.name for key in keys_of(Config)]
    assert decode(tree) == (Config(), [])


def test_the_default_file_fits_a_terminal() -> None:
    comments = [line for line in default_yaml().splitlines() if line.lstrip().startswith("#")]
    assert max(map(len, comments)) <= 100


def test_the_effective_file_reads_back_to_what_is_in_effect(tmp_path: Path) -> None:
    overrides = [
        "runtime.handlers={runsc: {path: /usr/bin/runsc, kind: vm, env: {A: 'off'}}, kata: null}",
        "security.default_ulimits={nofile: {soft: 1, hard: 2}}",
        "security.default_sysctls.net.ipv4.ip_forward=1",
        "metrics.address=",
        "streaming.token_ttl=1500ms",
        "socket.mode=0600",
    ]
    config = load_config(default_file=tmp_path / "none", overrides=overrides)
    assert decode(parse_document(effective_yaml(config), name="effective")) == (config, [])


def test_every_key_has_a_meaning() -> None:
    def check(section: type[msgspec.Struct]) -> None:
        for key in keys_of(section):
            assert key.description.endswith("."), key.name
            for inner in (key.section, key.entry_section):
                if inner is not None:
                    check(inner)

    check(Config)


@pytest.mark.parametrize("path", all_paths(Config))
def test_the_reference_page_has_a_row_for_each_key(path: str) -> None:
    assert f"| `{path}` |" in reference_markdown()


def test_the_reference_page_is_fresh() -> None:
    assert DOCS.read_text() == reference_markdown(), (
        "stale: run `python -m cri_shim.config > docs/configuration.md`"
    )


def test_a_tree_holds_plain_values_only() -> None:
    assert to_tree(Config())["socket"] == {"group": "root", "mode": "0660"}
    assert to_tree(Config())["stats"] == {"cache": "10s", "metrics": list(MetricGroup)}
