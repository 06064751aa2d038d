"""Translates a pod's bandwidth annotations to the argument of the CNI capability `bandwidth`. Pure.

Rules:
- A rate is a Kubernetes quantity (`10M`, `1.5Gi`, `2e6`) of bits per second, between the bounds that the kubelet and
  other components use: 1k to 1P.
- No annotation sets the burst, so it is chosen here: a tenth of a second at the rate, within two bounds. It must hold
  the largest packet that the network stack passes on (64 KiB), since larger ones are segmented. It must not last so
  long that the kernel's 32-bit clock of 64 ns ticks overflows.

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
    """The argument of the capability `bandwidth`, in bits per second and bits. Empty without annotations.

    Ingress is traffic that the pod receives. Raises InvalidArgumentError that names the annotation.
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
            f"annotation {annotation}: {quoted(text, 60)} is not a quantity of bits per second, such as 10M"
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
            f"annotation {annotation}: {quoted(text, 60)}: must be between 1k and 1P bits per second"
        )
    return int(number.to_integral_value(ROUND_CEILING))


def _burst(rate: int) -> int:
    at_least = min(_MIN_BURST, rate * _MAX_BURST_S)
    return min(max(rate // 10, at_least), _MAX_BURST)
