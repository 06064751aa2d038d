from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import CommandError, UnsupportedError
from cri_shim.host.apparmor import enabled, load_profile, loaded_profiles
from cri_shim.host.process import Reaper
from tests.fakes.apparmor import FakeAppArmor

if TYPE_CHECKING:
    from pathlib import Path


def test_kernel_without_apparmor_has_no_list(tmp_path: Path) -> None:
    assert loaded_profiles(tmp_path) is None


def test_names_are_read_whatever_is_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = FakeAppArmor(tmp_path, monkeypatch, "docker-default", "/usr/bin/x (y) z")
    assert loaded_profiles(tmp_path) == frozenset({"docker-default", "/usr/bin/x (y) z"})
    (tmp_path / "sys/module/apparmor/parameters/enabled").write_text("N\n")
    assert loaded_profiles(tmp_path) is None
    assert kernel.list.exists()


def test_kernel_whose_list_is_out_of_reach_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeAppArmor(tmp_path, monkeypatch).list.unlink()
    assert loaded_profiles(tmp_path) is None
    assert enabled(tmp_path)


@pytest.mark.asyncio
async def test_profile_is_written_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = FakeAppArmor(tmp_path, monkeypatch)
    file = tmp_path / "state" / "mine"
    file.parent.parent.mkdir(exist_ok=True)
    reaper = Reaper()
    reaper.open()
    try:
        with pytest.raises(UnsupportedError, match="apparmor_parser is not installed"):
            await load_profile(reaper, "mine", "profile mine {\n}\n", file)
        calls = kernel.install_parser()
        await load_profile(reaper, "mine", "profile mine {\n}\n", file)
        assert loaded_profiles(tmp_path) == frozenset({"mine"})
        assert calls.read_text() == f"--replace --skip-cache {file}\n"
        kernel.install_parser(fails="syntax error, line 3")
        with pytest.raises(CommandError, match=r"loading AppArmor profile mine.*syntax error"):
            await load_profile(reaper, "mine", "profile mine {\n}\n", file)
    finally:
        reaper.close()
