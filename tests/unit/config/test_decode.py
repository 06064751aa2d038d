from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.config.decode import MAX_SHOWN, decode, format_place, raw_type, show
from cri_shim.config.model import Config, HandlerKind
from cri_shim.config.render import to_tree


def problems(tree: object) -> list[str]:
    return [f"{problem.path}: {problem.message}" for problem in decode(tree)[1]]


def test_nothing_means_the_defaults() -> None:
    assert decode({}) == (Config(), [])
    assert decode(None) == (Config(), [])


def test_an_empty_section_means_its_defaults() -> None:
    assert decode({"tls": None, "security": {"default_ulimits": None}}) == (Config(), [])


def test_values_reach_the_code_under_names_with_units() -> None:
    config, found = decode(
        {
            "streaming": {"token_ttl": "30s", "base_url": "https://x"},
            "limits": {"grpc_message": "1MiB"},
            "runtime": {"handlers": {"runsc": {"path": "/usr/bin/runsc", "kind": "vm"}}},
        }
    )
    assert found == []
    assert config.streaming.token_ttl_s == 30.0
    assert config.streaming.base_url == "https://x"
    assert config.limits.grpc_message_bytes == 1 << 20
    assert {name: h.kind for name, h in config.runtime.handlers.items()} == {
        "runsc": HandlerKind.VM
    }


@pytest.mark.parametrize(
    ("tree", "complaint"),
    [
        ({"rot": "/x"}, "rot: unknown key, did you mean root?"),
        ({"log": {"colour": 1}}, "log.colour: unknown key, allowed: format, level"),
        ({"log": "info"}, 'log: is text ("info"), allowed: a mapping with the keys level, format'),
        ([1], "is a list ([1]), allowed: a mapping with the keys root, state"),
        (
            {"log": {"level": "loud"}},
            'log.level: is an unknown word ("loud"), allowed: debug, info, warning or error',
        ),
        (
            {"streaming": {"port": "abc"}},
            'streaming.port: is text ("abc"), allowed: a whole number from 0 to 65535',
        ),
        ({"streaming": {"port": 65536}}, "streaming.port: is too large (65536)"),
        ({"streaming": {"port": -1}}, "streaming.port: is too small (-1)"),
        ({"streaming": {"port": True}}, "streaming.port: is true or false (true)"),
        ({"streaming": {"port": 1.5}}, "streaming.port: has a fraction (1.5)"),
        ({"streaming": {"port": None}}, "streaming.port: has no value (null)"),
        ({"streaming": {"token_ttl": "0s"}}, 'is too small ("0s"), allowed: a duration like'),
        ({"events": {"enabled": "yes"}}, 'events.enabled: is text ("yes"), allowed: true or false'),
        (
            {"listen": "unix:///x"},
            'listen: is text ("unix:///x"), allowed: a list of 1 to 10 items',
        ),
        ({"listen": []}, "listen: has the wrong number of items (0)"),
        (
            {"listen": [f"unix:///{n}" for n in range(11)]},
            "listen: has the wrong number of items (11)",
        ),
        ({"listen": ["unix:///a", "x"]}, 'listen[1]: starts with neither unix:// nor tcp:// ("x")'),
        ({"listen": ["unix:///a", "unix:///a"]}, 'listen: names "unix:///a" twice'),
        (
            {"runtime": {"handlers": {"x": {}}}},
            "runtime.handlers.x.path: is required, allowed: an absolute",
        ),
        (
            {"runtime": {"handlers": {"X": {"path": "x"}}}},
            "runtime.handlers.X: is not a handler name",
        ),
        ({"runtime": {"handlers": []}}, "runtime.handlers: is a list ([])"),
        ({"security": {"default_ulimits": {"nofile": {"soft": 1}}}}, "nofile.hard: is required"),
        (
            {"security": {"default_ulimits": {"nofile": 5}}},
            "default_ulimits.nofile: is a number (5)",
        ),
        ({"sandbox": {"image": 5}}, "sandbox.image: is a number (5), allowed: text on one line"),
    ],
)
def test_a_mistake_is_told_with_path_value_and_what_is_allowed(tree: Any, complaint: str) -> None:
    found = problems(tree)
    assert len(found) >= 1
    assert complaint in found[0]


def test_every_mistake_is_told_not_only_the_first() -> None:
    tree = {"root": 1, "log": {"level": 1, "x": 1}, "cni": {"plugin_dirs": ["a", "/b", "c"]}}
    assert [line.split(": ")[0] for line in problems(tree)] == [
        *("root", "log.x", "log.level", "cni.plugin_dirs[0]", "cni.plugin_dirs[2]"),
    ]


def test_the_default_takes_the_place_of_a_broken_value() -> None:
    config, found = decode({"streaming": {"port": "x", "address": "::1"}})
    assert len(found) == 1
    assert (config.streaming.port, config.streaming.address) == (10350, "::1")


def test_null_takes_an_entry_out_of_a_mapping() -> None:
    tree = to_tree(Config())
    tree["runtime"]["handlers"]["kata"] = None
    config, found = decode(tree)
    assert found == []
    assert list(config.runtime.handlers) == ["runc", "crun"]


def test_long_values_are_cut_in_messages() -> None:
    assert len(show("x" * 1000)) == MAX_SHOWN + 1


def test_places_are_written_as_people_write_them() -> None:
    assert format_place(("a", "b", 2, "c")) == "a.b[2].c"


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("streaming.port", ("streaming", "port")),
        ("runtime.handlers.runc.path", ("runtime", "handlers", "runc", "path")),
        (
            "security.default_sysctls.net.ipv4.ip_forward",
            ("security", "default_sysctls", "net.ipv4.ip_forward"),
        ),
        ("nonsense.x.y", ("nonsense", "x", "y")),
        ("log.level.x", ("log", "level", "x")),
    ],
)
def test_a_dotted_path_is_cut_where_the_definitions_say(path: str, place: tuple[str, ...]) -> None:
    assert raw_type(Config, path.split("."))[0] == place


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(sorted(to_tree(Config()))), json_like, max_size=5))
def test_any_tree_gives_a_config_and_perhaps_problems(tree: dict[str, object]) -> None:
    config, _ = decode(tree)
    assert isinstance(config, Config)
