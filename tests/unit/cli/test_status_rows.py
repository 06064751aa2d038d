from __future__ import annotations

from typing import Any

from cri_shim.cli.status_reading import Sight
from cri_shim.cli.status_rows import document_of, others, rows_of
from tests.unit.cli.node_commands import MAIN, POD, POD_2, SIDE, operation, sight


def test_containers_stand_below_their_pod_and_the_oldest_comes_first() -> None:
    assert [row.cells() for row in rows_of(sight())] == [
        ("default/web", POD[:12], "ready", "2.5%", "3.0 MiB", "0", "60 s", "-"),
        ("  side", SIDE[:12], "exited", "-", "-", "2", "50 s", "-"),
        ("  main", MAIN[:12], "running", "2.5%", "3.0 MiB", "2", "50 s", "-"),
        ("default/db", POD_2[:12], "notready", "-", "-", "0", "20 s", "-"),
    ]


def test_each_says_what_it_is_waiting_for() -> None:
    seen = sight(
        operation("StopPodSandbox", POD_2, "cni DEL bridge", object_id=POD_2),
        operation("ExecSync", MAIN, "waiting for the command", object_id=MAIN),
        operation("StopContainer", MAIN, "killing the cgroup", "unmounting", object_id=MAIN),
    )
    waiting = {row.id: row.cells()[-1] for row in rows_of(seen)}
    assert waiting[POD_2] == "StopPodSandbox: cni DEL bridge (3.0 s)"
    assert waiting[MAIN] == (
        "ExecSync: waiting for the command (3.0 s), "
        "StopContainer: killing the cgroup (3.0 s) and unmounting (3.0 s)"
    )
    assert waiting[POD] == "-"
    assert others(seen) == []


def test_what_is_being_made_has_a_row_before_any_list_has_it() -> None:
    seen = sight(
        operation("RunPodSandbox", '["new","kube","uid",1]', "cni ADD bridge", object_id="e" * 64),
        operation("CreateContainer", f'["{POD}","init",0]', "runc create", object_id="f" * 64),
        # One that is listed is no longer being made, and a name that is none is nothing to show.
        operation("CreateContainer", f'["{POD}","main",2]', "beginning", object_id=MAIN),
        operation("RunPodSandbox", "[1]", "beginning"),
    )
    rows = {row.name: row for row in rows_of(seen)}
    assert (rows["kube/new"].state, rows["kube/new"].restarts) == ("creating", 1)
    assert rows["kube/new"].cells()[-1] == "RunPodSandbox: cni ADD bridge (3.0 s)"
    assert rows["init"].state == "creating"
    assert [row.name for row in rows_of(seen)] == [
        *("default/web", "side", "main", "init", "default/db", "kube/new")
    ]
    assert others(seen) == ["1: RunPodSandbox: beginning (3.0 s)"]


def test_what_belongs_to_no_row_is_told_by_what_it_is_about() -> None:
    seen = sight(
        operation("PullImage", "docker.io/library/busybox:1", "fetching and unpacking layers"),
        operation("pending cni DEL", "9" * 64, "cni DEL bridge", object_id="9" * 64),
    )
    assert others(seen) == [
        "docker.io/library/busybox:1: PullImage: fetching and unpacking layers (3.0 s)",
        f"{'9' * 64}: pending cni DEL: cni DEL bridge (3.0 s)",
    ]


def test_the_document_has_the_same() -> None:
    document: Any = document_of(
        sight(
            operation("StartContainer", SIDE, "runc start", object_id=SIDE),
            operation("PullImage", "a:1", "asking the registry"),
        )
    )
    [web, db] = document["pods"]
    assert (web["id"], web["name"], web["state"]) == (POD, "default/web", "ready")
    assert (web["cpuNanoCores"], web["memoryBytes"]) == (25_000_000, 3 << 20)
    side, main = web["containers"]
    assert (main["restarts"], main["ageSeconds"], main["operations"]) == (2, 50, [])
    [starting] = side["operations"]
    assert starting["steps"] == [{"step": "runc start", "forSeconds": 3}]
    assert (db["containers"], db["cpuNanoCores"]) == ([], None)
    assert [each["subject"] for each in document["operations"]] == ["a:1"]
    assert "trouble" not in document


def test_a_daemon_that_recovers_shows_what_it_recovers() -> None:
    seen = Sight(
        0,
        operations=(operation("recovery", POD, "runc delete", object_id=POD),),
        trouble="it is recovering",
    )
    assert document_of(seen)["trouble"] == "it is recovering"
    assert others(seen) == [f"{POD}: recovery: runc delete (3.0 s)"]
