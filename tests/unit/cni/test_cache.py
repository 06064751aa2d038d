from __future__ import annotations

import base64
import json
import os
from typing import TYPE_CHECKING

import pytest

from cri_shim.cni.attachment import Attachment
from cri_shim.cni.cache import CacheEntry, ResultCache
from cri_shim.errors import CriShimError

if TYPE_CHECKING:
    from pathlib import Path

ID = "a" * 64
ATTACHMENT = Attachment(
    ID, "/run/netns/x", "eth0", "pods", args={"K": "v"}, capability_args={"ips": ["10.0.0.9"]}
)
RESULT = {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.9/8"}]}


@pytest.fixture
def cache(tmp_path: Path) -> ResultCache:
    return ResultCache(tmp_path / "results")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "results" / f"pods-{ID}-eth0"


def test_the_file_is_laid_out_as_libcni_does(cache: ResultCache, file: Path) -> None:
    cache.save(CacheEntry.of(ATTACHMENT, b'{"list":1}', RESULT))
    assert json.loads(file.read_bytes()) == {
        "kind": "cniCacheV1",
        "containerId": ID,
        "config": base64.b64encode(b'{"list":1}').decode(),
        "ifName": "eth0",
        "networkName": "pods",
        "netns": "/run/netns/x",
        "cniArgs": [["K", "v"]],
        "capabilityArgs": {"ips": ["10.0.0.9"]},
        "result": RESULT,
    }
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_before_the_first_plugin_an_entry_has_no_result(cache: ResultCache, file: Path) -> None:
    cache.save(CacheEntry.of(Attachment(ID, "", "eth0", "pods"), b"{}"))
    assert set(json.loads(file.read_bytes())) == {
        "kind",
        "containerId",
        "config",
        "ifName",
        "networkName",
    }


def test_an_entry_gives_back_what_was_attached(cache: ResultCache) -> None:
    entry = CacheEntry.of(ATTACHMENT, b"{}", RESULT)
    cache.save(entry)
    assert cache.load(ATTACHMENT) == entry
    assert entry.attachment() == ATTACHMENT


def test_what_is_not_there_is_absent_and_may_be_removed(cache: ResultCache) -> None:
    assert cache.load(ATTACHMENT) is None
    assert cache.attachments(ID) == ()
    cache.remove(ATTACHMENT)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"\xff" * 10,
        b"{}",
        b'{"kind":"cniCacheV2"}',
        b"[" * 100_000,
        json.dumps(
            {
                "kind": "cniCacheV1",
                "containerId": "b" * 64,
                "config": "",
                "ifName": "eth0",
                "networkName": "pods",
            }
        ).encode(),
        json.dumps(
            {
                "kind": "cniCacheV1",
                "containerId": ID,
                "config": "",
                "ifName": "../../x",
                "networkName": "pods",
            }
        ).encode(),
        b" " * (5 << 20),
    ],
)
def test_a_bad_entry_is_set_aside_and_counts_as_absent(
    cache: ResultCache, file: Path, content: bytes
) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    assert cache.load(ATTACHMENT) is None
    assert not file.exists()
    assert file.with_name(f".bad-{file.name}").read_bytes() == content
    assert cache.attachments(ID) == ()


def test_the_attachments_of_a_container_are_found_without_its_networks(
    cache: ResultCache, file: Path
) -> None:
    second = Attachment(ID, "", "net1", "a-network-with-dashes")
    other = Attachment("b" * 64, "", "eth0", "pods")
    for attachment in (ATTACHMENT, second, other):
        cache.save(CacheEntry.of(attachment, b"{}"))
    (file.parent / f"pods-{ID}-eth9").write_bytes(b"bad")
    assert set(map(str, cache.attachments(ID))) == {str(second), str(ATTACHMENT)}


def test_entries_of_others_are_left_as_they_are(cache: ResultCache, file: Path) -> None:
    file.parent.mkdir()
    foreign = file.parent / f"pods-{'c' * 64}-eth0"
    foreign.write_bytes(b"whatever")
    cache.attachments(ID)
    assert foreign.read_bytes() == b"whatever"


def test_a_disk_that_fails_is_an_error_that_names_file_and_step(
    cache: ResultCache, file: Path
) -> None:
    file.parent.parent.joinpath("results").write_text("a file, not a directory")
    with pytest.raises(CriShimError, match=r"CNI result cache: can't write .*pods-aaa"):
        cache.save(CacheEntry.of(ATTACHMENT, b"{}"))
    with pytest.raises(CriShimError, match="can't list"):
        cache.attachments(ID)


def test_no_half_written_file_is_left_beside_an_entry(cache: ResultCache, file: Path) -> None:
    for _ in range(3):
        cache.save(CacheEntry.of(ATTACHMENT, b"{}", RESULT))
    assert os.listdir(file.parent) == [file.name]


def test_what_a_predecessor_left_of_a_write_is_swept(cache: ResultCache, file: Path) -> None:
    cache.save(CacheEntry.of(ATTACHMENT, b"{}"))
    file.with_name(f"{file.name}.77-0.tmp").write_bytes(b"half")
    assert cache.attachments(ID) == (ATTACHMENT,)
    assert os.listdir(file.parent) == [file.name]


def test_a_leftover_of_a_write_that_cannot_be_removed_hides_no_attachment(
    cache: ResultCache, file: Path
) -> None:
    cache.save(CacheEntry.of(ATTACHMENT, b"{}"))
    file.with_name(f"{file.name}.77-0.tmp").mkdir()
    assert cache.attachments(ID) == (ATTACHMENT,)


def test_an_interface_may_be_named_like_a_temporary_file(cache: ResultCache) -> None:
    odd = Attachment(ID, "", "e.7-0.tmp", "pods")
    cache.save(CacheEntry.of(odd, b"{}"))
    assert cache.attachments(ID) == (odd,)


def test_an_entry_that_cannot_be_removed_is_an_error(cache: ResultCache, file: Path) -> None:
    file.mkdir(parents=True)
    with pytest.raises(CriShimError, match="CNI result cache: can't remove"):
        cache.remove(ATTACHMENT)


def test_a_bad_entry_that_cannot_be_set_aside_still_counts_as_absent(
    cache: ResultCache, file: Path
) -> None:
    file.parent.mkdir()
    file.write_bytes(b"bad")
    file.with_name(f".bad-{file.name}").mkdir()
    assert cache.load(ATTACHMENT) is None
    assert file.read_bytes() == b"bad"
