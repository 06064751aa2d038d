from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

import pytest

from cri_shim.cli.image_local import LocalImages
from cri_shim.config import Config
from cri_shim.config.values import ListenUrl
from cri_shim.errors import InvalidArgumentError, NotFoundError, UnavailableError
from tests.unit.cli.image_commands import command

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("own_logging")


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """For commands on a root of the test's own, whose daemon does not run."""
    values = {
        "root": tmp_path / "root",
        "state": tmp_path / "state",
        "listen": f'["unix://{tmp_path}/cri.sock"]',
    }
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


def test_an_absent_image_is_the_same_error_as_from_a_daemon(options: list[str]) -> None:
    with pytest.raises(NotFoundError, match="'a:1' not found: see `cri-shim image list`"):
        command("rm", "a:1", *options)
    with pytest.raises(NotFoundError, match=r"^cannot export a:1: image 'a:1' not found"):
        command("export", "a:1", "/dev/null", *options)
    with pytest.raises(NotFoundError, match=r"^cannot check the images: image 'a:1' not found"):
        command("check", "a:1", *options)
    with pytest.raises(InvalidArgumentError, match=r"^cannot pull A: .*lower case"):
        command("pull", "A", *options)


def test_a_registry_that_does_not_answer_is_named(options: list[str]) -> None:
    with pytest.raises(
        UnavailableError, match=r"^cannot pull 127.0.0.1:9/a: RegistryUnavailable: .*refused"
    ):
        command("pull", "127.0.0.1:9/a", *options)


def test_an_archive_that_is_none_is_refused_and_nothing_is_left(
    tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no archive" * 1000)))
    with pytest.raises(InvalidArgumentError, match=r"^cannot import the image: "):
        command("import", "-", *options)
    assert not list((tmp_path / "root/images/.ingest").iterdir())


def test_an_empty_store_is_sound_and_has_nothing_to_collect(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("check", *options) == 0
    assert command("gc", "--dry-run", *options) == 0
    assert capsys.readouterr().out.splitlines() == [
        "checked 0 images, 0 layers and 0 blobs (0 B): no damage",
        "would remove 0 images, 0 layers, 0 blobs, 0 leftovers: 0 B",
    ]


def test_the_lock_is_given_back_whatever_happens(tmp_path: Path) -> None:
    config = Config(
        root=tmp_path / "root",
        state=tmp_path / "state",
        listen=(ListenUrl(f"unix://{tmp_path}/s"),),
    )
    for _ in range(2):
        with (
            pytest.raises(KeyboardInterrupt),
            LocalImages(config, no_daemon="no daemon") as images,
        ):
            raise KeyboardInterrupt(images)


def test_a_root_that_can_not_be_used_is_told_beside_why_the_daemon_was_not_asked(
    tmp_path: Path, options: list[str]
) -> None:
    (tmp_path / "root").touch()
    with pytest.raises(UnavailableError) as failure:
        command("list", *options)
    assert "there is no such socket" in str(failure.value)
    assert f"opened without it either: root: cannot create directory {tmp_path}/root" in str(
        failure.value
    )
