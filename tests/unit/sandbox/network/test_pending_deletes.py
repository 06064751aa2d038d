"""Pending deletes: written before anything is forgotten, read back by a successor."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from cri_shim.cni.attachment import Attachment
from cri_shim.errors import CriShimError
from cri_shim.sandbox.network.pending_deletes import (
    PendingDelete,
    PendingDeletes,
    read_pending_deletes,
)

if TYPE_CHECKING:
    from pathlib import Path


def attachment(container_id: str = "a1", *, network: str = "pods") -> Attachment:
    return Attachment(
        container_id=container_id,
        netns="/run/netns/cri-a1",
        ifname="eth0",
        network=network,
        args={"K8S_POD_NAME": "web"},
        capability_args={"portMappings": [{"hostPort": 80}]},
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "pending_deletes"


def test_a_pending_delete_survives_with_all_that_its_del_needs(directory: Path) -> None:
    told: list[PendingDelete] = []
    pending_deletes = PendingDeletes(directory)
    pending_deletes.load()
    pending_deletes.added = told.append
    pending_deletes.add(attachment(), pod="default/web", error="busy")
    (pending,) = told
    (file,) = directory.iterdir()
    assert file.name == "pods-a1-eth0.json"
    assert file.stat().st_mode & 0o777 == 0o600

    again = PendingDeletes(directory)
    again.load()
    (kept,) = again
    assert kept == pending
    assert kept.attachment == attachment()
    assert (kept.pod, kept.error) == ("default/web", "busy")
    assert (again.holds("a1"), again.holds("a2"), len(again)) == (True, False, 1)
    again.remove(kept)
    assert (list(again), list(directory.iterdir())) == ([], [])
    again.remove(kept)


def test_the_first_failure_is_the_one_that_is_kept(directory: Path) -> None:
    pending_deletes = PendingDeletes(directory)
    pending_deletes.add(attachment(), pod="default/web", error="the first cause")
    pending_deletes.add(attachment(), pod="", error="a later one")
    assert [pending.error for pending in pending_deletes] == ["the first cause"]


def test_the_oldest_comes_first(directory: Path) -> None:
    pending_deletes = PendingDeletes(directory)
    for name in ("c", "a", "b"):
        pending_deletes.add(attachment(name), pod="", error="busy")
    again = PendingDeletes(directory)
    again.load()
    assert [pending.container_id for pending in again] == ["c", "a", "b"]


def test_a_pending_delete_that_cannot_be_written_is_an_error_and_not_noted(directory: Path) -> None:
    directory.write_text("in the way")
    pending_deletes = PendingDeletes(directory)
    with pytest.raises(CriShimError, match=r"writing the pending delete of eth0 of a1 "):
        pending_deletes.add(attachment(), pod="", error="busy")
    assert (len(pending_deletes), pending_deletes.holds("a1")) == (0, False)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:20],
        lambda text: json.dumps({**json.loads(text), "network": "storage"}),
        lambda text: json.dumps({**json.loads(text), "container_id": "../x"}),
        lambda _: "[" * 10000,
    ],
    ids=["torn", "of another attachment", "no name", "deep"],
)
def test_a_file_that_cannot_be_read_is_set_aside_and_hurts_no_other(
    directory: Path, change: object
) -> None:
    assert callable(change)
    pending_deletes = PendingDeletes(directory)
    pending_deletes.add(attachment("a1"), pod="", error="busy")
    pending_deletes.add(attachment("b2"), pod="", error="busy")
    file = directory / "pods-a1-eth0.json"
    file.write_text(change(file.read_text()))
    (directory / "pods-c3-eth0.json.7-0.tmp").write_text("half")
    assert [pending.container_id for pending in read_pending_deletes(directory)] == ["b2"]
    assert file.exists()
    again = PendingDeletes(directory)
    with capture_logs() as logs:
        again.load()
    assert [pending.container_id for pending in again] == ["b2"]
    assert not file.exists()
    assert (directory / ".bad-pods-a1-eth0.json").exists()
    assert logs[0]["event"] == "cannot read a pending delete"
