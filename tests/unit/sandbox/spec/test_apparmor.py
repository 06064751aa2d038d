from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
import structlog

from cri_shim.errors import CommandError, ConfigError
from cri_shim.host.process import Reaper
from cri_shim.oci.spec.apparmor import DEFAULT_PROFILE
from cri_shim.sandbox.spec.apparmor import AppArmor
from tests.fakes.apparmor import FakeAppArmor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def reaper() -> AsyncIterator[Reaper]:
    reaper = Reaper()
    reaper.open()
    yield reaper
    reaper.close()


def of(reaper: Reaper, root: Path, default: str = DEFAULT_PROFILE) -> AppArmor:
    return AppArmor(reaper, default, root / "profile", root=root)


async def test_kernel_without_apparmor_needs_nothing(reaper: Reaper, tmp_path: Path) -> None:
    apparmor = of(reaper, tmp_path, "whatever")
    await apparmor.prepare()
    assert await apparmor.current() is None
    assert apparmor.promised() is None


async def test_default_profile_is_loaded_at_start_and_again_when_it_vanished(
    reaper: Reaper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = FakeAppArmor(tmp_path, monkeypatch, "other")
    calls = kernel.install_parser()
    apparmor = of(reaper, tmp_path)
    await apparmor.prepare()
    assert await apparmor.current() == frozenset({"other", DEFAULT_PROFILE})
    assert len(calls.read_text().splitlines()) == 1
    assert "deny mount," in (tmp_path / "profile").read_text()
    kernel.forget()
    assert apparmor.promised() == frozenset({DEFAULT_PROFILE})
    assert await apparmor.current() == frozenset({DEFAULT_PROFILE})
    assert len(calls.read_text().splitlines()) == 2


async def test_newer_version_replaces_the_profile_of_an_older_one(
    reaper: Reaper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = FakeAppArmor(tmp_path, monkeypatch, DEFAULT_PROFILE)
    calls = kernel.install_parser()
    await of(reaper, tmp_path).prepare()
    assert calls.read_text()


async def test_failing_parser_is_not_passed_over(
    reaper: Reaper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeAppArmor(tmp_path, monkeypatch).install_parser(fails="no memory")
    with structlog.testing.capture_logs() as logged:
        await of(reaper, tmp_path).prepare()
    assert "no memory" in logged[0]["error"], "said at start, which goes on"
    with pytest.raises(CommandError, match="no memory"):
        await of(reaper, tmp_path).current()


async def test_without_a_parser_the_daemon_starts_and_says_so(
    reaper: Reaper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeAppArmor(tmp_path, monkeypatch, "other")
    monkeypatch.setenv("PATH", str(tmp_path))
    apparmor = of(reaper, tmp_path)
    with structlog.testing.capture_logs() as logged:
        await apparmor.prepare()
    assert logged[0]["missing"] == "apparmor_parser"
    assert await apparmor.current() == apparmor.promised() == frozenset({"other"})


async def test_operators_own_default_must_be_there(
    reaper: Reaper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = FakeAppArmor(tmp_path, monkeypatch, "ours")
    calls = kernel.install_parser()
    with pytest.raises(ConfigError, match=r"security\.apparmor_profile: 'theirs'"):
        await of(reaper, tmp_path, "theirs").prepare()
    await of(reaper, tmp_path, "ours").prepare()
    assert not calls.read_text(), "it is the operator's to load"


async def test_list_that_is_out_of_reach_is_said(
    reaper: Reaper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeAppArmor(tmp_path, monkeypatch).list.unlink()
    with structlog.testing.capture_logs() as logged:
        await of(reaper, tmp_path).prepare()
    assert logged[0]["missing"] == "securityfs"


async def test_operator_may_want_no_default(
    reaper: Reaper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = FakeAppArmor(tmp_path, monkeypatch, "mine").install_parser()
    apparmor = of(reaper, tmp_path, "unconfined")
    await apparmor.prepare()
    assert await apparmor.current() == frozenset({"mine"})
    assert not calls.read_text()
