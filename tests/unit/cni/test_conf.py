from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.cni.conf import (
    KNOWN_VERSIONS,
    MAX_CONF_BYTES,
    NetworkList,
    build_plugin_config,
    parse_conf,
    parse_conflist,
)
from cri_shim.errors import ConfigError

LIST: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "name": "pods",
    "plugins": [
        {"type": "bridge", "bridge": "cni0", "ipam": {"type": "host-local"}},
        {"type": "portmap", "capabilities": {"portMappings": True, "aliases": False}},
    ],
}
SOURCE = "/etc/cni/net.d/10-pods.conflist"


def conflist(document: object) -> NetworkList:
    return parse_conflist(json.dumps(document).encode(), source=SOURCE)


def without(document: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != key}


def test_a_list_keeps_its_plugins_in_order_with_what_they_declare() -> None:
    network = conflist(LIST)
    assert (network.name, network.cni_version, network.disable_check) == ("pods", "1.0.0", False)
    assert [plugin.type for plugin in network.plugins] == ["bridge", "portmap"]
    assert network.plugins[0].conf["ipam"] == {"type": "host-local"}
    assert network.plugins[1].capabilities == {"portMappings"}


def test_the_document_of_a_list_gives_the_list_again() -> None:
    network = conflist(LIST)
    assert parse_conflist(network.document, source=SOURCE) == network


def test_a_single_plugin_becomes_a_list_of_one_whose_document_is_a_list() -> None:
    conf = {
        "cniVersion": "0.4.0",
        "name": "old",
        "type": "bridge",
        "capabilities": {"ips": True},
        "mtu": 1400,
    }
    network = parse_conf(json.dumps(conf).encode(), source="/x/10.conf")
    assert (network.name, network.cni_version) == ("old", "0.4.0")
    assert [plugin.type for plugin in network.plugins] == ["bridge"]
    assert network.plugins[0].conf["mtu"] == 1400
    assert parse_conflist(network.document, source="x") == network


@pytest.mark.parametrize("version", KNOWN_VERSIONS)
def test_every_released_version_is_known(version: str) -> None:
    assert conflist({**LIST, "cniVersion": version}).cni_version == version


@pytest.mark.parametrize("document", [without(LIST, "cniVersion"), {**LIST, "cniVersion": ""}])
def test_a_list_without_a_version_is_of_the_first(document: dict[str, Any]) -> None:
    assert conflist(document).cni_version == "0.1.0"


@pytest.mark.parametrize(
    ("versions", "version", "chosen"),
    [
        (["0.4.0", "1.1.0", "1.0.0"], None, "1.1.0"),
        (["1.0.0", "9.0.0"], "0.4.0", "1.0.0"),
        (["0.3.1"], "1.0.0", "1.0.0"),
        ([], "0.4.0", "0.4.0"),
    ],
)
def test_of_several_versions_the_newest_known_is_used(
    versions: list[str], version: str | None, chosen: str
) -> None:
    document = {**without(LIST, "cniVersion"), "cniVersions": versions}
    if version is not None:
        document["cniVersion"] = version
    assert conflist(document).cni_version == chosen


@pytest.mark.parametrize(
    ("value", "flag"), [(True, True), (False, False), ("TRUE", True), ("false", False)]
)
def test_disable_check_may_be_a_text(value: object, flag: bool) -> None:
    assert conflist({**LIST, "disableCheck": value}).disable_check is flag


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ([], "not a JSON object"),
        (without(LIST, "name"), ": name: is missing"),
        ({**LIST, "name": ""}, ": name: is missing"),
        ({**LIST, "name": 7}, ": name: Expected `str`, got `int`"),
        ({**LIST, "name": "../x"}, ": name: '../x' is not a network name"),
        ({**LIST, "name": "x" * 129}, ": name: "),
        (
            {**LIST, "cniVersion": "2.0.0"},
            ": cniVersion: '2.0.0' is not supported; supported are 0.1",
        ),
        ({**without(LIST, "cniVersion"), "cniVersions": ["8.0.0"]}, "'8.0.0' is not supported"),
        ({**LIST, "cniVersions": [1]}, ": cniVersions[0]: Expected `str`"),
        ({**LIST, "disableCheck": "maybe"}, ": disableCheck: 'maybe' is neither"),
        ({**LIST, "disableCheck": 1}, ": disableCheck: Expected"),
        (without(LIST, "plugins"), ": plugins: is missing"),
        ({**LIST, "plugins": []}, ": plugins: the list is empty"),
        ({**LIST, "plugins": {"type": "x"}}, ": plugins: Expected `array`"),
        ({**LIST, "plugins": [{}]}, ": plugins[0].type: is missing"),
        ({**LIST, "plugins": [LIST["plugins"][0], {"type": 3}]}, ": plugins[1].type: Expected"),
        (
            {**LIST, "plugins": [{"type": "../../bin/sh"}]},
            ": plugins[0].type: '../../bin/sh' is not",
        ),
        ({**LIST, "plugins": [{"type": ".."}]}, ": plugins[0].type: '..' is not"),
        ({**LIST, "plugins": [{"type": ""}]}, ": plugins[0].type: '' is not"),
        ({**LIST, "plugins": [{"type": "a\n"}]}, ": plugins[0].type: "),
        (
            {**LIST, "plugins": [{"type": "a", "capabilities": {"ips": "yes"}}]},
            ": plugins[0].capabilities[...]: Expected `bool`",
        ),
    ],
)
def test_a_mistake_is_named_with_file_and_place(document: object, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        conflist(document)
    assert str(caught.value).startswith(SOURCE + ": ")
    assert complaint in str(caught.value)


def test_a_list_in_a_single_plugin_file_is_told_the_right_suffix() -> None:
    with pytest.raises(ConfigError, match=r"end in \.conflist"):
        parse_conf(json.dumps(LIST).encode(), source="/x/10.conf")


def test_a_single_plugin_without_a_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="name: is missing"):
        parse_conf(b'{"type": "bridge"}', source="/x/10.conf")


def test_a_single_plugin_with_a_path_as_its_type_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"/x/10\.conf: type: 'a/b' is not a plugin name"):
        parse_conf(b'{"type": "a/b", "name": "x"}', source="/x/10.conf")


def test_a_document_beyond_the_bound_is_refused() -> None:
    data = json.dumps({**LIST, "pad": "x" * MAX_CONF_BYTES}).encode()
    with pytest.raises(ConfigError, match="larger than"):
        parse_conflist(data, source=SOURCE)


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 9000])
def test_bytes_that_are_no_json_object_are_refused(data: bytes) -> None:
    with pytest.raises(ConfigError, match="not a JSON object"):
        parse_conflist(data, source=SOURCE)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_list_or_a_config_error(data: bytes) -> None:
    for parse in (parse_conflist, parse_conf):
        with contextlib.suppress(ConfigError):
            parse(data, source="f")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "type", "cniVersion", "plugins", "capabilities", "ipam"]),
            inner,
        )
    ),
    max_leaves=12,
)


@given(JSON_VALUES)
def test_any_json_gives_a_list_or_a_config_error(document: object) -> None:
    try:
        network = conflist(document)
    except ConfigError:
        return
    assert parse_conflist(network.document, source="again") == network


def test_a_plugin_is_given_name_version_and_what_it_declares() -> None:
    network = conflist(LIST)
    told = {"portMappings": [{"hostPort": 80}], "aliases": ["a"], "bandwidth": {}}
    config = json.loads(
        build_plugin_config(
            network, network.plugins[1], prev_result={"ips": []}, capability_args=told
        )
    )
    assert config == {
        "type": "portmap",
        "capabilities": {"portMappings": True, "aliases": False},
        "name": "pods",
        "cniVersion": "1.0.0",
        "runtimeConfig": {"portMappings": [{"hostPort": 80}]},
        "prevResult": {"ips": []},
    }


def test_the_first_plugin_gets_neither_a_previous_result_nor_empty_runtime_configuration() -> None:
    network = conflist(LIST)
    config = json.loads(
        build_plugin_config(network, network.plugins[0], capability_args={"portMappings": []})
    )
    assert "prevResult" not in config
    assert "runtimeConfig" not in config


def test_name_and_version_of_the_list_replace_those_of_a_plugin() -> None:
    plugin = {"type": "bridge", "name": "mine", "cniVersion": "0.2.0"}
    network = conflist({**LIST, "plugins": [plugin]})
    config = json.loads(build_plugin_config(network, network.plugins[0]))
    assert (config["name"], config["cniVersion"]) == ("pods", "1.0.0")


@pytest.mark.parametrize("key", ["disableGC", "disableCheck"])
@pytest.mark.parametrize(
    ("value", "means"), [(True, True), ("true", True), ("False", False), (False, False)]
)
def test_what_is_disabled_may_be_written_as_text(key: str, value: object, *, means: bool) -> None:
    network = conflist({**LIST, key: value})
    assert {"disableGC": network.disable_gc, "disableCheck": network.disable_check}[key] is means
    with pytest.raises(ConfigError, match=f"{key}: 'maybe' is neither true nor false"):
        conflist({**LIST, key: "maybe"})


def test_keys_of_the_specification_reach_no_plugin_but_by_the_verb_that_has_them() -> None:
    plugin = {"type": "bridge", "cni.dev/valid-attachments": ["forged"], "cni.dev/other": 1}
    network = conflist({**LIST, "plugins": [plugin]})
    told = json.loads(build_plugin_config(network, network.plugins[0]))
    assert not [key for key in told if key.startswith("cni.dev/")]
    valid = [{"containerID": "a", "ifname": "eth0"}]
    told = json.loads(build_plugin_config(network, network.plugins[0], valid_attachments=valid))
    assert told["cni.dev/valid-attachments"] == valid
