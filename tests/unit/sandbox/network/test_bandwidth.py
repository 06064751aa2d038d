"""Rates as pods write them, and as the bandwidth plugin reads them."""

from __future__ import annotations

import pytest

from cri_shim.errors import InvalidArgumentError
from cri_shim.sandbox.network.bandwidth import EGRESS, INGRESS, bandwidth

KERNEL_CLOCK_S = 2**32 * 64e-9
"""How long a bucket may last before the kernel's 32 bits of 64 ns run over."""


@pytest.mark.parametrize(
    ("text", "bits_per_second"),
    [
        ("1k", 1_000),
        ("1000", 1_000),
        ("+1000", 1_000),
        ("10M", 10_000_000),
        ("1.5G", 1_500_000_000),
        (".5M", 500_000),
        ("5.M", 5_000_000),
        ("1Ki", 1024),
        ("1.5Gi", 1_610_612_736),
        ("1e3", 1_000),
        ("25E5", 2_500_000),
        ("1e+6", 1_000_000),
        ("5000000e-3", 5_000),
        ("1P", 10**15),
        ("0.001E", 10**15),
        ("2000000m", 2_000),
        ("1500000500u", 1_501),
        ("2000000000000n", 2_000),
        ("1000.1", 1_001),
    ],
)
def test_a_rate_is_a_quantity_rounded_up(text: str, bits_per_second: int) -> None:
    assert bandwidth({INGRESS: text})["ingressRate"] == bits_per_second


@pytest.mark.parametrize(
    "text",
    [
        *("", " 1M", "1M ", "fast", "1 M", "1MB", "1mi", "1K", "-1M", "1e", "e3", ".", "M", "1,5M"),
        *("0x10", "\u0661M", "1e3M", "1e1000", "inf", "NaN", "1" * 21, "1_000"),
    ],
)
def test_what_is_no_quantity_is_refused_under_the_annotations_name(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"annotation {EGRESS}: .*not a quantity"):
        bandwidth({EGRESS: text})


@pytest.mark.parametrize("text", ["0", "999", "1", "1000000u", "1001T", "2P", "1E", "1Pi", "9e999"])
def test_rates_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="must be between 1k and 1P"):
        bandwidth({INGRESS: text})


def test_only_what_is_asked_for_is_limited() -> None:
    assert bandwidth({}) == {}
    assert set(bandwidth({INGRESS: "1M"})) == {"ingressRate", "ingressBurst"}
    assert set(bandwidth({EGRESS: "1M"})) == {"egressRate", "egressBurst"}
    assert set(bandwidth({INGRESS: "1M", EGRESS: "1M"})) == {
        *("ingressRate", "ingressBurst", "egressRate", "egressBurst")
    }


@pytest.mark.parametrize("text", ["1k", "4k", "10k", "1M", "10M", "1G", "400G", "1P"])
def test_a_burst_holds_packets_and_fits_the_kernel(text: str) -> None:
    told = bandwidth({INGRESS: text})
    rate, burst = told["ingressRate"], told["ingressBurst"]
    assert burst / rate < KERNEL_CLOCK_S
    assert burst // 8 >= 10 * 1500
    assert burst < 2**32


def test_at_ordinary_rates_a_burst_is_a_tenth_of_a_second() -> None:
    assert bandwidth({EGRESS: "1G"})["egressBurst"] == 100_000_000
