"""Sizes of a virtual machine: what is in range passes, the rest is refused by the annotation's name."""

from __future__ import annotations

import json

import pytest

from cri_shim.errors import InvalidArgumentError
from cri_shim.oci.spec.vm_sizes import BLKIO_CGROUP, SANDBOX_CPU, SANDBOX_MEM, check_vm_sizes

MAX_CPUS = 8


def blkio(*limits: tuple[str, int], path: str = "/dev/sda") -> str:
    device: dict[str, object] = {"limits": [{"type": t, "value": v} for t, v in limits]}
    if path:
        device["path"] = path
    return json.dumps({"blkiocgroup": [device]})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (SANDBOX_CPU, "0.5"),
        (SANDBOX_CPU, "8"),
        (SANDBOX_CPU, "1.25"),
        (SANDBOX_MEM, "1G"),
        (SANDBOX_MEM, "256G"),
        (SANDBOX_MEM, "2048M"),
        (SANDBOX_MEM, "4GB"),
        (BLKIO_CGROUP, blkio(("throttle_read_bps", 400), ("throttle_write_iops", 1))),
        (BLKIO_CGROUP, blkio(("blkio_weight", 78), ("blkio_leaf_weight", 1000), path="")),
        ("io.katacontainers.config.hypervisor.default_vcpus", "what it likes"),
    ],
)
def test_what_a_machine_can_have_passes(key: str, value: str) -> None:
    check_vm_sizes({key: value}, MAX_CPUS)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        (SANDBOX_CPU, "0.4", "at least 0.5 and at most 8"),
        (SANDBOX_CPU, "8.5", "at most 8"),
        (SANDBOX_CPU, "-1", "must be a number"),
        (SANDBOX_CPU, "1e3", "must be a number"),
        (SANDBOX_CPU, "٢", "must be a number"),
        (SANDBOX_CPU, "", "must be a number"),
        (SANDBOX_MEM, "1023M", "between 1G and 256G"),
        (SANDBOX_MEM, "257G", "between 1G and 256G"),
        (SANDBOX_MEM, "4T", "must be a size"),
        (SANDBOX_MEM, "4 G", "must be a size"),
        (BLKIO_CGROUP, "{}", "must be JSON"),
        (BLKIO_CGROUP, "[" * 100_000, "longer than"),
        (BLKIO_CGROUP, "[" * 10_000, "must be JSON"),
        (BLKIO_CGROUP, blkio(("throttle", 1)), "must be JSON"),
        (BLKIO_CGROUP, blkio(("throttle_read_bps", 0)), "must be JSON"),
        (BLKIO_CGROUP, blkio(("throttle_read_bps", 1), path=""), "needs the path of a device"),
        (BLKIO_CGROUP, blkio(("throttle_read_bps", 1), path="/etc/passwd"), "must be a device"),
        (BLKIO_CGROUP, blkio(("throttle_read_bps", 1), path="/dev/../etc"), "must be a device"),
        (BLKIO_CGROUP, blkio(("blkio_weight", 9), path=""), "between 10 and 1000"),
    ],
)
def test_what_no_machine_can_have_is_refused(key: str, value: str, why: str) -> None:
    with pytest.raises(InvalidArgumentError, match=why) as raised:
        check_vm_sizes({key: value}, MAX_CPUS)
    assert key in str(raised.value)


def test_a_node_that_does_not_say_how_many_processors_it_has_bounds_nothing() -> None:
    check_vm_sizes({SANDBOX_CPU: "512"}, 0)
