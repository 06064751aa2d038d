import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.errors import ConfigError, InvalidArgumentError
from cri_shim.oci.spec.hooks import (
    MAX_MATCHED_CHARS,
    Hook,
    add_matching_hooks,
    node_programs,
    parse_hook_file,
    parse_hook_list,
)

PROGRAM = "/usr/libexec/hook"


def document(**changes: Any) -> bytes:
    file = {
        "version": "1.0.0",
        "hook": {"path": PROGRAM},
        "when": {"always": True},
        "stages": ["prestart"],
    }
    return json.dumps({**file, **changes}).encode()


def matches(
    when: dict[str, Any],
    *,
    annotations: dict[str, str] | None = None,
    command: str = "/bin/app",
    binds: bool = False,
) -> bool:
    hook = parse_hook_file(document(when=when), "h.json")
    return hook.is_for(annotations=annotations or {}, command=command, has_bind_mounts=binds)


def test_always_and_never() -> None:
    assert matches({"always": True})
    assert not matches({"always": False})


def test_commands_are_searched_for_in_the_first_word_and_one_is_enough() -> None:
    when = {"commands": ["^/usr/bin/x$", "app"]}
    assert matches(when)
    assert not matches(when, command="/bin/other")


def test_each_annotation_needs_a_match_of_key_and_value() -> None:
    when = {"annotations": {"^gpu$": "^(yes|true)$", "^team": ".*"}}
    assert matches(when, annotations={"gpu": "yes", "team.example/x": ""})
    assert not matches(when, annotations={"gpu": "yes"})
    assert not matches(when, annotations={"gpu": "no", "team": "a", "other": "yes"})


def test_a_text_too_long_to_be_looked_through_is_refused_where_it_would_have_to_be() -> None:
    long = "x" * (MAX_MATCHED_CHARS + 1)
    when = {"annotations": {"^key$": "^.*a.*b$"}, "commands": ["sh"]}
    assert matches(when, annotations={"other": long, "key": "ab"}, command="sh")
    for annotations, command, what in (
        ({"key": long}, "sh", r"annotations\['key'\]: 1025 characters"),
        ({long: "ab"}, "sh", "the name of an annotation"),
        ({"key": "ab"}, f"sh{long}", "the first word of the command"),
    ):
        with pytest.raises(InvalidArgumentError, match=what):
            matches(when, annotations=annotations, command=command)


def test_bind_mounts() -> None:
    assert matches({"hasBindMounts": True}, binds=True)
    assert not matches({"hasBindMounts": True})
    assert not matches({"hasBindMounts": False}), "as in every implementation of the format"


def test_every_condition_must_hold() -> None:
    when = {"always": True, "commands": ["app"], "hasBindMounts": True}
    assert matches(when, binds=True)
    assert not matches(when)
    assert not matches(when, binds=True, command="/bin/other")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": "0.1.0"}, "version '0.1.0'"),
        ({"version": "2"}, "version"),
        ({"hook": {"path": "hook"}}, "absolute"),
        ({"hook": {}}, "path"),
        ({"hook": {"path": PROGRAM, "timeout": 0}}, "timeout"),
        ({"hook": {"path": PROGRAM, "env": ["A"]}}, "NAME=VALUE"),
        ({"hook": {"path": PROGRAM, "arg": []}}, "arg"),
        ({"when": {}}, "no condition"),
        ({"when": {"comands": ["x"]}}, "comands"),
        ({"when": {"commands": ["("]}}, "pattern"),
        ({"when": {"annotations": {"[[:alpha:]]": "x"}}}, "not supported"),
        ({"when": {"commands": [r"x\z"]}}, "not supported"),
        ({"stages": []}, "stages"),
        ({"stages": ["precreate"]}, "precreate"),
    ],
)
def test_what_cannot_be_used_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=r"h.json") as refusal:
        parse_hook_file(document(**changes), "h.json")
    assert words in str(refusal.value)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_hook_or_a_refusal(data: bytes) -> None:
    for parse in (parse_hook_file, parse_hook_list):
        try:
            parse(data, "h.json")
        except ConfigError:
            pass


def test_matching_hooks_reach_their_stages_in_order() -> None:
    full = {"path": PROGRAM, "args": ["hook", "-v"], "env": ["A=b"], "timeout": 5}
    hooks = [
        parse_hook_file(document(hook=full, stages=["prestart", "poststop", "prestart"]), "a"),
        parse_hook_file(document(when={"commands": ["other"]}), "b"),
        parse_hook_file(document(hook={"path": "/in"}, stages=["startContainer"]), "c"),
        parse_hook_file(document(hook={"path": "/second"}), "d"),
    ]
    spec: dict[str, Any] = {"process": {"args": ["/bin/app"]}}
    add_matching_hooks(spec, hooks, annotations={}, has_bind_mounts=False)
    assert spec["hooks"] == {
        "prestart": [full, {"path": "/second"}],
        "poststop": [full],
        "startContainer": [{"path": "/in"}],
    }
    assert node_programs(spec) == [PROGRAM, "/second", PROGRAM]


def test_a_container_without_hooks_has_no_list_of_them() -> None:
    spec: dict[str, Any] = {"process": {"args": ["/bin/app"]}}
    add_matching_hooks(spec, [], annotations={}, has_bind_mounts=False)
    assert "hooks" not in spec


def test_the_nodes_list_is_for_every_container() -> None:
    data = {"prestart": [{"path": "/a"}], "poststop": [{"path": "/b", "timeout": 3}]}
    hooks = parse_hook_list(json.dumps(data).encode(), "list")
    assert [(hook.hook, hook.stages) for hook in hooks] == [
        (Hook("/a"), ("prestart",)),
        (Hook("/b", timeout=3), ("poststop",)),
    ]
    assert all(h.is_for(annotations={}, command="x", has_bind_mounts=False) for h in hooks)
    with pytest.raises(ConfigError, match="createRuntime"):
        parse_hook_list(b'{"createRuntime": []}', "list")
