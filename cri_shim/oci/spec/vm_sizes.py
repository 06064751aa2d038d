"""Sizes of a pod's virtual machine that its annotations ask for, in openEuler's terms. Pure.

Rules of the file: only what the handler's allow-list lets through is looked at, and it is passed on as it was given.
The runtime takes a value out of range for whatever it likes, so one is refused here, before anything is made.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from cri_shim.errors import UNREADABLE_DOCUMENT, InvalidArgumentError
from cri_shim.oci.spec.checks import refuse
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

_PREFIX = "com.github.containers.virtcontainers."
SANDBOX_CPU = f"{_PREFIX}sandbox_cpu"
SANDBOX_MEM = f"{_PREFIX}sandbox_mem"
BLKIO_CGROUP = f"{_PREFIX}blkio_cgroup"
MIN_CPUS = 0.5
MIN_BYTES, MAX_BYTES = 1 << 30, 256 << 30
_NUMBER = re.compile(r"\d{1,6}(?:\.\d{1,6})?", re.ASCII)
_SIZE = re.compile(r"(\d{1,18})([KMGkmg]?)[Bb]?", re.ASCII)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_MAX_BLKIO_BYTES = 64 << 10
_DEVICE = re.compile(r"/dev/[A-Za-z0-9_./-]{1,200}", re.ASCII)
_WEIGHTS = ("blkio_weight", "blkio_leaf_weight")
_MIN_WEIGHT, _MAX_WEIGHT = 10, 1000


class _Limit(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal[
        "throttle_read_bps",
        "throttle_write_bps",
        "throttle_read_iops",
        "throttle_write_iops",
        "blkio_weight",
        "blkio_leaf_weight",
    ]
    value: Annotated[int, msgspec.Meta(ge=1)]


class _Device(msgspec.Struct, forbid_unknown_fields=True):
    limits: list[_Limit]
    path: str = ""


class _Blkio(msgspec.Struct, forbid_unknown_fields=True):
    blkiocgroup: list[_Device]


def check_vm_sizes(annotations: Mapping[str, str], max_cpus: int) -> None:
    """Refuse a size that no virtual machine can have; `max_cpus` is how many the node has, 0 if that is not known.

    Raises InvalidArgumentError naming the annotation.
    """
    if (cpus := annotations.get(SANDBOX_CPU)) is not None:
        _check_cpus(cpus, max_cpus)
    if (size := annotations.get(SANDBOX_MEM)) is not None:
        _check_memory(size)
    if (blkio := annotations.get(BLKIO_CGROUP)) is not None:
        _check_blkio(blkio)


def _check_cpus(text: str, max_cpus: int) -> None:
    if _NUMBER.fullmatch(text) is None:
        refuse(_field(SANDBOX_CPU), text, "must be a number like 2 or 0.5")
    if float(text) < MIN_CPUS or (max_cpus and float(text) > max_cpus):
        most = f" and at most {max_cpus}, as many as the node has" if max_cpus else ""
        refuse(_field(SANDBOX_CPU), text, f"must be at least {MIN_CPUS}{most}")


def _check_memory(text: str) -> None:
    found = _SIZE.fullmatch(text)
    if found is None:
        refuse(_field(SANDBOX_MEM), text, "must be a size like 4G")
    size = int(found[1]) * _UNITS[found[2].upper()]
    if not MIN_BYTES <= size <= MAX_BYTES:
        refuse(_field(SANDBOX_MEM), text, "must be between 1G and 256G")


def _check_blkio(text: str) -> None:
    field = _field(BLKIO_CGROUP)
    if len(text) > _MAX_BLKIO_BYTES:
        raise InvalidArgumentError(f"{field}: longer than {_MAX_BLKIO_BYTES} bytes")
    try:
        document = msgspec.json.decode(text, type=_Blkio)
    except UNREADABLE_DOCUMENT as error:
        refuse(
            field,
            text,
            f'must be JSON like {{"blkiocgroup": [{{"path", "limits": [...]}}]}}: {error}',
        )
    for device in document.blkiocgroup:
        if device.path and (_DEVICE.fullmatch(device.path) is None or ".." in device.path):
            refuse(f"{field}.path", device.path, "must be a device like /dev/sda")
        for limit in device.limits:
            if limit.type in _WEIGHTS:
                if not _MIN_WEIGHT <= limit.value <= _MAX_WEIGHT:
                    refuse(
                        f"{field}.{limit.type}",
                        limit.value,
                        f"must be between {_MIN_WEIGHT} and {_MAX_WEIGHT}",
                    )
            elif not device.path:
                refuse(f"{field}.{limit.type}", limit.value, "needs the path of a device")


def _field(key: str) -> str:
    return f"annotations[{quoted(key)}]"
