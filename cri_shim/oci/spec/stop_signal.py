"""The signal that stops a container.

Rules: CRI's Signal is an enum of names whose numbers are not the kernel's. An image's StopSignal is a name with or
without SIG, or a number. Real-time signals are counted as in glibc: SIGRTMIN is 34.
"""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

from cri_shim._pb.cri.v1 import api_pb2
from cri_shim.oci.spec.checks import refuse

if TYPE_CHECKING:
    from cri_shim._pb.cri.v1.api_pb2 import ContainerConfig
    from cri_shim.oci.spec.inputs import ImageDefaults

SIGRTMIN = 34
SIGRTMAX = 64
_REAL_TIME = re.compile(r"RT(?:MIN(?:(?:\+|PLUS)(\d{1,2}))?|MAX(?:(?:-|MINUS)(\d{1,2}))?)")
_NUMBERS = {name: int(number) for name, number in signal.Signals.__members__.items()}


def stop_signal(config: ContainerConfig, image: ImageDefaults) -> int:
    """The number of the stop signal: the request's, else the image's, else SIGTERM.

    Raises InvalidArgumentError for an unknown signal.
    """
    if config.stop_signal != api_pb2.SIGNAL_RUNTIME_DEFAULT:
        if config.stop_signal not in api_pb2.Signal.values():
            refuse("stop_signal", config.stop_signal, "is not a Signal of CRI")
        return parse_signal(
            api_pb2.Signal.Name(config.stop_signal).removeprefix("SIGNAL_"), "stop_signal"
        )
    if image.stop_signal:
        return parse_signal(image.stop_signal, "image StopSignal")
    return int(signal.SIGTERM)


def parse_signal(text: str, field: str) -> int:
    """Parse `SIGTERM`, `term`, `15` or `SIGRTMIN+3` into a number.

    Raises InvalidArgumentError with the field.
    """
    is_number = re.fullmatch(r"[0-9]{1,2}", text) is not None
    number = int(text) if is_number else _by_name(text.upper().removeprefix("SIG"))
    # 32 and 33 are glibc's own, which programs can't handle.
    if not 1 <= number <= SIGRTMAX or number in (SIGRTMIN - 1, SIGRTMIN - 2):
        refuse(field, text, "is not a signal; use a name like SIGTERM or a number from 1 to 64")
    return number


def _by_name(name: str) -> int:
    """The signal's number; 0 if it is unknown."""
    if match := _REAL_TIME.fullmatch(name):
        plus, minus = match.groups()
        number = (
            SIGRTMAX - int(minus or 0) if name.startswith("RTMAX") else SIGRTMIN + int(plus or 0)
        )
        return number if SIGRTMIN <= number <= SIGRTMAX else 0
    return _NUMBERS.get(f"SIG{name}", 0)
