"""What a pod may say about its networks, and what it may not."""

from __future__ import annotations

import json

import pytest

from cri_shim.errors import InvalidArgumentError
from cri_shim.sandbox.network.annotations import (
    CNI_ARGS_PREFIX,
    DISABLE_DEFAULT,
    MAX_CNI_ARG,
    MAX_CNI_ARGS,
    MAX_NETWORKS,
    NETWORKS,
    additional_networks,
    cni_args,
    joins_default_network,
)
from cri_shim.sandbox.store.model import NetworkAttachment


def named(text: str, *, taken: str = "eth0") -> list[tuple[str, str]]:
    found = additional_networks({NETWORKS: text}, taken=taken)
    return [(attachment.network, attachment.ifname) for attachment in found]


def test_a_pod_that_says_nothing_has_the_default_network_only() -> None:
    assert additional_networks({"a": "b"}) == ()
    assert joins_default_network({})
    assert cni_args({"a": "b"}) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "blue", "interface": "eth1"}', [("blue", "eth1")]),
        ('[{"name": "blue", "interface": "eth1"}]', [("blue", "eth1")]),
        ('{"name": "blue"}', [("blue", "net1")]),
        ('[{"name": "blue"}, {"name": "red"}]', [("blue", "net1"), ("red", "net2")]),
        (
            '[{"name": "blue", "interface": "fast0"}, {"name": "blue", "interface": ""}]',
            [("blue", "fast0"), ("blue", "net2")],
        ),
        ("[]", []),
    ],
)
def test_one_network_or_a_list_each_with_an_interface(
    text: str, expected: list[tuple[str, str]]
) -> None:
    assert named(text) == expected


def test_the_default_interface_is_free_without_the_default_network() -> None:
    assert additional_networks({NETWORKS: '{"name": "blue", "interface": "eth0"}'}) == (
        NetworkAttachment("blue", "eth0"),
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "must be {"),
        ("blue", "must be {"),
        ("null", "must be {"),
        ('"blue"', "must be {"),
        ("[" * 8000, "must be {"),
        ('{"name": "blue", "ips": ["10.0.0.1"]}', "unknown field"),
        ('{"interface": "eth1"}', "name"),
        ('{"name": 1}', "must be {"),
        ('[{"name": "blue"}, null]', "must be {"),
        ('{"name": ""}', "is not a valid network name"),
        ('{"name": "../blue"}', "is not a valid network name"),
        ('{"name": "a;b"}', "is not a valid network name"),
        (json.dumps({"name": "n" * 129}), "is not a valid network name"),
        (
            '{"name": "blue", "interface": "eth0"}',
            "'eth0' of network 'blue': another network has it",
        ),
        (
            '[{"name": "a", "interface": "x"}, {"name": "b", "interface": "x"}]',
            "another network has it",
        ),
        ('[{"name": "a", "interface": "net2"}, {"name": "b"}]', "'net2' .*another network has it"),
        *(
            (json.dumps({"name": "blue", "interface": name}), "interface .*up to 15")
            for name in ("lo", "all", "default", "a/b", "a:b", "a b", "..", "net%d", "a" * 16, "ä")
        ),
        (json.dumps([{"name": "blue"}] * (MAX_NETWORKS + 1)), "17 networks: the limit is 16"),
        (" " * 20000 + "[]", "longer than"),
    ],
    ids=lambda value: value[:40],
)
def test_anything_else_is_refused_under_the_annotations_name(text: str, complaint: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"(?s)annotation {NETWORKS}: .*{complaint}"):
        named(text)


@pytest.mark.parametrize(("text", "joins"), [("true", False), ("false", True)])
def test_the_default_network_can_be_declined(text: str, *, joins: bool) -> None:
    assert joins_default_network({DISABLE_DEFAULT: text}) is joins


@pytest.mark.parametrize("text", ["", "True", "1", "yes" * 100])
def test_it_is_declined_with_true_only(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=DISABLE_DEFAULT):
        joins_default_network({DISABLE_DEFAULT: text})


def args(*texts: str) -> dict[str, str]:
    return {f"{CNI_ARGS_PREFIX}{number:03}": text for number, text in enumerate(texts)}


def test_arguments_come_in_the_order_of_the_annotations_names() -> None:
    annotations = {f"{CNI_ARGS_PREFIX}z": "A=1", f"{CNI_ARGS_PREFIX}a": "IP=10.0.0.9/24"}
    assert list(cni_args(annotations).items()) == [("IP", "10.0.0.9/24"), ("A", "1")]


def test_a_value_may_be_empty() -> None:
    assert cni_args(args("A=")) == {"A": ""}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "must be KEY=VALUE"),
        ("A", "must be KEY=VALUE"),
        ("=1", "must be KEY=VALUE"),
        ("A B=1", "must be KEY=VALUE"),
        ("A;IgnoreUnknown=0", "must be KEY=VALUE"),
        ("A=1;IgnoreUnknown=0", "the value of A contains"),
        ("A=1=2", "the value of A contains"),
        ("A=1\n2", "the value of A contains"),
        ("A=\0", "the value of A contains"),
        ("IgnoreUnknown=0", "is reserved: the daemon sets it"),
        ("ignoreunknown=0", "is reserved: the daemon sets it"),
        ("K8S_POD_NAME=other", "is reserved: the daemon sets it"),
        ("K8S_POD_=other", "is reserved: the daemon sets it"),
        ("k8s_pod_uid=other", "is reserved: the daemon sets it"),
        ("A=" + "1" * MAX_CNI_ARG, "longer than"),
    ],
)
def test_no_argument_can_smuggle_or_replace_another(text: str, complaint: str) -> None:
    with pytest.raises(
        InvalidArgumentError, match=f"annotation {CNI_ARGS_PREFIX}000: .*{complaint}"
    ):
        cni_args(args(text))


def test_an_argument_is_given_once() -> None:
    with pytest.raises(InvalidArgumentError, match="001: A is set by another"):
        cni_args(args("A=1", "A=2"))


def test_arguments_are_bounded() -> None:
    assert len(cni_args(args(*(f"A{n}=1" for n in range(MAX_CNI_ARGS))))) == MAX_CNI_ARGS
    with pytest.raises(InvalidArgumentError, match="33 annotations: the limit is 32"):
        cni_args(args(*(f"A{n}=1" for n in range(MAX_CNI_ARGS + 1))))
