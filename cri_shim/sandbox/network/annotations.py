"""What a pod's annotations say about its networks: which it joins besides or instead of the default, CNI_ARGS. Pure.

Rules:
- Annotations are written by whoever may create pods: bounded, parsed strictly, and a mistake is an
  InvalidArgumentError that names the annotation. Nothing is guessed: a pod on the wrong network is no half success.
- A network is named, never described: which networks there are is the node's business.
- Nothing said here takes the place of what the daemon tells plugins about the pod (`K8S_POD_*`, `IgnoreUnknown`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from cri_shim.cni.attachment import is_network_name
from cri_shim.errors import InvalidArgumentError
from cri_shim.quoting import quoted
from cri_shim.sandbox.store.model import NetworkAttachment

if TYPE_CHECKING:
    from collections.abc import Mapping

NETWORKS: Final = "network.alpha.kubernetes.io/network"
DISABLE_DEFAULT: Final = "network.alpha.kubernetes.io/disableDefaultNetwork"
CNI_ARGS_PREFIX: Final = "extension.network.kubernetes.io/cniargs/"

MAX_NETWORKS: Final = 16
MAX_CNI_ARGS: Final = 32
MAX_CNI_ARG: Final = 1024
"""Characters of one `KEY=VALUE`; all of them go into one environment variable, and the kernel bounds that."""
_MAX_TEXT: Final = 16 << 10

# Stricter than the kernel, which would expand a `%d`.
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
_KERNELS = frozenset({"lo", "all", "default"})
_KEY = re.compile(r"[A-Za-z0-9_.-]+")
_OURS = re.compile(r"k8s_pod_.*|ignoreunknown", re.IGNORECASE)


class _Named(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    interface: str = ""


def joins_default_network(annotations: Mapping[str, str]) -> bool:
    """Whether the pod is on the node's default network, as it is unless it says otherwise."""
    text = annotations.get(DISABLE_DEFAULT, "false")
    if text not in ("true", "false"):
        raise InvalidArgumentError(
            f"annotation {DISABLE_DEFAULT}: {quoted(text, 40)}: true or false"
        )
    return text == "false"


def additional_networks(
    annotations: Mapping[str, str], *, taken: str = ""
) -> tuple[NetworkAttachment, ...]:
    """The networks that the pod names, in its order, with an interface for each.

    One without an interface of its own gets `net` and its place, counted from 1. `taken` is the default network's
    interface, if the pod has that one.
    """
    text = annotations.get(NETWORKS)
    if text is None:
        return ()
    attachments = []
    interfaces = {taken}
    for place, named in enumerate(_parsed(text), start=1):
        attachment = NetworkAttachment(named.name, named.interface or f"net{place}")
        if not is_network_name(attachment.network):
            raise _bad(f"name {quoted(named.name, 140)}: not the name of a network")
        if _INTERFACE.fullmatch(attachment.ifname) is None or attachment.ifname in _KERNELS:
            raise _bad(
                f"interface {quoted(named.interface, 40)}: up to 15 letters, digits, _ . -, a letter or digit first, "
                "and none of the kernel's own names"
            )
        if attachment.ifname in interfaces:
            raise _bad(
                f"interface {quoted(attachment.ifname)} of network {quoted(named.name)}: it is taken"
            )
        interfaces.add(attachment.ifname)
        attachments.append(attachment)
    return tuple(attachments)


def _parsed(text: str) -> list[_Named]:
    if len(text) > _MAX_TEXT:
        raise _bad(f"longer than {_MAX_TEXT} characters")
    try:
        said = msgspec.json.decode(text, type=_Named | list[_Named])
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise _bad(f'not {{"name": …, "interface": …}} or a list of such: {error}') from error
    named = said if isinstance(said, list) else [said]
    if len(named) > MAX_NETWORKS:
        raise _bad(f"{len(named)} networks; at most {MAX_NETWORKS}")
    return named


def _bad(what: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"annotation {NETWORKS}: {what}")


def cni_args(annotations: Mapping[str, str]) -> dict[str, str]:
    """The arguments that the pod's annotations add to CNI_ARGS, in the order of the annotations' names."""
    found: dict[str, str] = {}
    names = sorted(name for name in annotations if name.startswith(CNI_ARGS_PREFIX))
    if len(names) > MAX_CNI_ARGS:
        raise InvalidArgumentError(
            f"annotations {CNI_ARGS_PREFIX}…: {len(names)} of them; at most {MAX_CNI_ARGS}"
        )
    for name in names:
        key, separator, value = annotations[name].partition("=")
        problem = ""
        if len(annotations[name]) > MAX_CNI_ARG:
            problem = f"longer than {MAX_CNI_ARG} characters"
        elif not separator or _KEY.fullmatch(key) is None:
            problem = "not KEY=VALUE, with letters, digits, _ . - in the key"
        elif not value.isprintable() or ";" in value or "=" in value:
            problem = f"the value of {key} holds ';', '=' or what is not printable"
        elif _OURS.fullmatch(key):
            problem = f"{key} is what plugins are told by the daemon"
        elif key in found:
            problem = f"{key} is given by another annotation"
        if problem:
            raise InvalidArgumentError(f"annotation {name:.200}: {problem}")
        found[key] = value
    return found
