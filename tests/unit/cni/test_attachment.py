from __future__ import annotations

import pytest

from cri_shim.cni.attachment import Attachment, is_network_name
from cri_shim.errors import InvalidArgumentError

CONTAINER_ID = "0123456789abcdef" * 4


def attachment(**changes: object) -> Attachment:
    values: dict[str, object] = {
        "container_id": CONTAINER_ID,
        "netns": "/run/netns/x",
        "ifname": "eth0",
        "network": "pods",
    }
    return Attachment(**{**values, **changes})  # type: ignore[arg-type]


def test_cni_args_are_joined_in_the_order_given() -> None:
    args = {"IgnoreUnknown": "1", "K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": "a-b.c"}
    expected = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=a-b.c"
    assert attachment(args=args).cni_args == expected


def test_no_arguments_give_an_empty_text() -> None:
    assert attachment().cni_args == ""


@pytest.mark.parametrize(
    "args",
    [
        {"A": "1;B=2"},
        {"A;B": "1"},
        {"A": "b=c"},
        {"A=B": "1"},
        {"": "1"},
        {"A": "b\nc"},
        {"A": "b\0c"},
        {"A\x7f": "b"},
    ],
)
def test_an_argument_cannot_smuggle_in_another(args: dict[str, str]) -> None:
    with pytest.raises(InvalidArgumentError, match="CNI argument"):
        attachment(args=args)


@pytest.mark.parametrize(
    "ifname", ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "x" * 16, "é" * 8, "a\0b"]
)
def test_an_interface_name_that_the_kernel_would_refuse_is_refused(ifname: str) -> None:
    with pytest.raises(InvalidArgumentError, match="interface name"):
        attachment(ifname=ifname)


@pytest.mark.parametrize("ifname", ["eth0", "x" * 15, "net1.100", "a_b-c"])
def test_an_interface_name_of_the_kernel_is_accepted(ifname: str) -> None:
    assert attachment(ifname=ifname).ifname == ifname


@pytest.mark.parametrize("container_id", ["", "../x", "a/b", "-a", "a" * 65, "a b"])
def test_a_container_id_that_could_leave_the_cache_directory_is_refused(container_id: str) -> None:
    with pytest.raises(InvalidArgumentError, match="container ID"):
        attachment(container_id=container_id)


@pytest.mark.parametrize("network", ["", ".hidden", "../x", "a/b", "a" * 129, "a\n"])
def test_a_network_name_that_could_leave_the_cache_directory_is_refused(network: str) -> None:
    assert not is_network_name(network)
    with pytest.raises(InvalidArgumentError, match="network name"):
        attachment(network=network)


def test_its_text_names_interface_container_and_network() -> None:
    assert str(attachment()) == "eth0 of 0123456789abc on network pods"
