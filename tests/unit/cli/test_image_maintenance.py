from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from cri_shim.image.integrity.report import Damage, Finding, Unrepaired
from tests.unit.cli.image_commands import run
from tests.unit.rpc.fakes import make_image, serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("quiet_server")]

LAYER = Finding(Damage.LAYER_ALTERED, "sha256:1", ("a:1", "b:1"), "etc/passwd has other bytes")
BLOB = Finding(Damage.BLOB, "sha256:2", ("a:1",), "its bytes have another digest")
UNKNOWN = Finding(Damage.UNVERIFIED, "sha256:3", ("a:1",), "nothing to compare it with")


async def test_sound_images_are_said_to_be_sound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(tmp_path) as (daemon, _):
        daemon.images.held = [make_image(1, "a:1")]
        daemon.images.findings = [UNKNOWN]
        assert await run(daemon.socket_path, "check") == 0
        assert daemon.images.checks == [([], False)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [
        "unverified: sha256:3 of a:1: nothing to compare it with",
        "checked 1 image, 2 layers and 3 blobs (4.0 KiB): no damage",
    ]


async def test_damage_is_told_with_what_to_do_and_is_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(tmp_path) as (daemon, _):
        daemon.images.findings = [LAYER, UNKNOWN]
        assert await run(daemon.socket_path, "check", "a:1", "a:1") == 1
        assert daemon.images.checks == [(["a:1"], False)]
    *_, damage, _, sums, remedy = capsys.readouterr().out.splitlines()
    assert damage == "layer altered: sha256:1 of a:1, b:1: etc/passwd has other bytes"
    assert sums.endswith(": 1 damage left")
    assert remedy == "to repair it: cri-shim image check --repair"


async def test_a_repair_fails_only_for_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(tmp_path) as (daemon, _):
        daemon.images.findings = [LAYER, BLOB]
        assert await run(daemon.socket_path, "check", "--repair") == 0
        daemon.images.unrepaired = [Unrepaired(BLOB, "no registry has it")]
        assert await run(daemon.socket_path, "check", "--repair") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("repaired: sha256:1 of a:1, b:1: etc/passwd has other bytes") == 2
    assert lines[-2:] == [
        "blob: sha256:2 of a:1: its bytes have another digest; not repaired: no registry has it",
        "checked 0 images, 2 layers and 3 blobs (4.0 KiB): 1 damage left",
    ]


async def test_a_check_for_scripts_is_one_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(tmp_path) as (daemon, _):
        daemon.images.findings = [BLOB]
        assert await run(daemon.socket_path, "check", "--json") == 1
    assert json.loads(capsys.readouterr().out) == {
        "sound": False,
        "images": 0,
        "layers": 2,
        "blobs": 3,
        "bytes": 4096,
        "damages": [
            {
                "kind": "blob",
                "object": "sha256:2",
                "images": ["a:1"],
                "detail": "its bytes have another digest",
                "repaired": False,
                "reason": "",
            }
        ],
    }


async def test_a_collection_says_what_went_or_would_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(tmp_path) as (daemon, _):
        assert await run(daemon.socket_path, "gc") == 0
        assert await run(daemon.socket_path, "gc", "--dry-run", "--untagged") == 0
        assert daemon.images.collections == [(False, False), (True, True)]
    assert capsys.readouterr().out.splitlines() == [
        "removed old:1",
        "removed sha256:aa",
        "removed 2 images, 1 layer, 2 blobs, 0 leftovers: 3.0 MiB",
        "would remove old:1",
        "would remove sha256:aa",
        "would remove 2 images, 1 layer, 2 blobs, 0 leftovers: 3.0 MiB",
    ]
