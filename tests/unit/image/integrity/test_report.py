"""When a report says that images are sound."""

from __future__ import annotations

import pytest

from cri_shim.image.integrity.report import CheckReport, Damage, Finding


def found(*damages: Damage) -> CheckReport:
    findings = tuple(Finding(damage, "sha256:1", ("web",), "seen") for damage in damages)
    return CheckReport(images=1, layers=1, blobs=1, checked_bytes=1, findings=findings)


def test_what_could_not_be_verified_is_no_damage() -> None:
    assert found().sound
    assert found(Damage.UNVERIFIED, Damage.UNVERIFIED).sound


@pytest.mark.parametrize("damage", sorted(set(Damage) - {Damage.UNVERIFIED}))
def test_any_other_finding_is(damage: Damage) -> None:
    assert not found(Damage.UNVERIFIED, damage).sound
