"""Parses a pod's network annotations: networks besides or instead of the default one, and CNI_ARGS. Pure.

Rules:
- Everyone who may create pods writes annotations. They are bounded and parsed strictly. A mistake is an
  InvalidArgumentError that names the annotation, since a pod on the wrong network is worse than no pod.
- An annotation names a network of the node's configuration. It cannot define one.
- An annotation cannot override the daemon's own CNI_ARGS (`K8S_POD_*`, `IgnoreUnknown`).
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
"""Characters of one `KEY=VALUE`. All pairs share one environment variable, whose size the kernel limits."""
_MAX_TEXT: Final = 16 << 10

# Stricter than the kernel, which also expands `%d`.
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
_KERNELS = frozenset({"lo", "all", "default"})
_KEY = re.compile(r"[A-Za-z0-9_.-]+")
_OURS = re.compile(r"k8s_pod_.*|ignoreunknown", re.IGNORECASE)


class _Named(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    interface: str = ""


def joins_default_network(annotations: Mapping[str, str]) -> bool:
    """Whether the pod joins the node's default network. It does unless an annotation disables it."""
    text = annotations.get(DISABLE_DEFAULT, "false")
    if text not in ("true", "false"):
        raise InvalidArgumentError(
            f"annotation {DISABLE_DEFAULT}: {quoted(text, 40)}: must be true or false"
        )
    return text == "false"


def additional_networks(
    annotations: Mapping[str, str], *, taken: str = ""
) -> tuple[NetworkAttachment, ...]:
    """The networks that the pod names, in that order, with an interface for each.

    An entry without an interface gets `net1`, `net2` and so on, by its position. `taken` is the interface of the
    default network, or "" if the pod does not join it.
    """
    text = annotations.get(NETWORKS)
    if text is None:
        return ()
    attachments = []
    interfaces = {taken}
    for place, named in enumerate(_parsed(text), start=1):
        attachment = NetworkAttachment(named.name, named.interface or f"net{place}")
        if not is_network_name(attachment.network):
            raise _bad(f"name {quoted(named.name, 140)} is not a valid network name")
        if _INTERFACE.fullmatch(attachment.ifname) is None or attachment.ifname in _KERNELS:
            raise _bad(
                f"interface {quoted(named.interface, 40)}: must be up to 15 letters, digits, '_', '.' and '-', start "
                "with a letter or digit, and not be lo, all or default"
            )
        if attachment.ifname in interfaces:
            raise _bad(
                f"interface {quoted(attachment.ifname)} of network {quoted(named.name)}: another network has it"
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
        raise _bad(f'must be {{"name": …, "interface": …}} or a list of these: {error}') from error
    named = said if isinstance(said, list) else [said]
    if len(named) > MAX_NETWORKS:
        raise _bad(f"{len(named)} networks: the limit is {MAX_NETWORKS}")
    return named


def _bad(what: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"annotation {NETWORKS}: {what}")


def cni_args(annotations: Mapping[str, str]) -> dict[str, str]:
    """The CNI_ARGS in the pod's annotations, sorted by the annotation's name. Raises InvalidArgumentError."""
    found: dict[str, str] = {}
    names = sorted(name for name in annotations if name.startswith(CNI_ARGS_PREFIX))
    if len(names) > MAX_CNI_ARGS:
        raise InvalidArgumentError(
            f"annotations {CNI_ARGS_PREFIX}…: {len(names)} annotations: the limit is {MAX_CNI_ARGS}"
        )
    for name in names:
        key, separator, value = annotations[name].partition("=")
        problem = ""
        if len(annotations[name]) > MAX_CNI_ARG:
            problem = f"longer than {MAX_CNI_ARG} characters"
        elif not separator or _KEY.fullmatch(key) is None:
            problem = "must be KEY=VALUE, with letters, digits, '_', '.' and '-' in KEY"
        elif not value.isprintable() or ";" in value or "=" in value:
            problem = f"the value of {key} contains ';', '=' or a character that is not printable"
        elif _OURS.fullmatch(key):
            problem = f"{key} is reserved: the daemon sets it"
        elif key in found:
            problem = f"{key} is set by another annotation"
        if problem:
            raise InvalidArgumentError(f"annotation {name:.200}: {problem}")
        found[key] = value
    return found
