"""The bandwidth that a pod's annotations ask for, as the capability `bandwidth` describes it. Pure.

Rules:
- A rate is a Kubernetes quantity (`10M`, `1.5Gi`, `2e6`) of bits per second, within the bounds that the kubelet and its
  peers agree on: 1k to 1P.
- The burst is ours, since no annotation tells it. It must hold a packet as big as the stack hands one over (64 KiB), or
  those are taken apart; it may not be so long at the rate that the kernel's clock for it (32 bits of 64 ns) runs over;
  and what goes through unshaped should be short. A tenth of a second does, within those bounds.

CNI conventions, capability `bandwidth`; Kubernetes API, "Quantity".
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING, Final

from cri_shim.errors import InvalidArgumentError
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

INGRESS: Final = "kubernetes.io/ingress-bandwidth"
EGRESS: Final = "kubernetes.io/egress-bandwidth"
MIN_RATE: Final = 1_000
MAX_RATE: Final = 10**15
"""Bits per second."""

_MIN_BURST: Final = 128 * 1024 * 8
_MAX_BURST: Final = (1 << 32) - 1
_MAX_BURST_S: Final = 200
_QUANTITY = re.compile(
    r"\+?(?P<number>\d{1,20}(\.\d{0,20})?|\.\d{1,20})"
    r"((?P<suffix>[numkMGTPE]|[KMGTPE]i)|[eE](?P<exponent>[+-]?\d{1,3}))?",
    re.ASCII,
)
_DECIMAL: Final = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY: Final = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}


def bandwidth(annotations: Mapping[str, str]) -> dict[str, int]:
    """The value of the capability `bandwidth`, in bits per second and bits; empty where nothing is asked for.

    Ingress is what the pod receives. Raises InvalidArgumentError that names the annotation.
    """
    told: dict[str, int] = {}
    for direction, annotation in (("ingress", INGRESS), ("egress", EGRESS)):
        if annotation not in annotations:
            continue
        rate = _rate(annotation, annotations[annotation])
        told[f"{direction}Rate"] = rate
        told[f"{direction}Burst"] = _burst(rate)
    return told


def _rate(annotation: str, text: str) -> int:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise InvalidArgumentError(
            f"annotation {annotation}: {quoted(text, 60)}: not a quantity of bits per second, such as 10M"
        )
    number = Decimal(match["number"])
    if suffix := match["suffix"]:
        number *= (
            Decimal(2) ** _BINARY[suffix] if suffix in _BINARY else Decimal(10) ** _DECIMAL[suffix]
        )
    elif exponent := match["exponent"]:
        number = number.scaleb(int(exponent))
    if not MIN_RATE <= number <= MAX_RATE:
        raise InvalidArgumentError(
            f"annotation {annotation}: {quoted(text, 60)}: at least 1k and at most 1P bits per second"
        )
    return int(number.to_integral_value(ROUND_CEILING))


def _burst(rate: int) -> int:
    at_least = min(_MIN_BURST, rate * _MAX_BURST_S)
    return min(max(rate // 10, at_least), _MAX_BURST)
