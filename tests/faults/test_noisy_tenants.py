"""No pod holds up the node: an attack of each kind goes on beside a victim, which must not notice.

Seconds of each in every run, a minute when asked for (`-m slow`); `python -m tests.faults.noisy` tells of more.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.noisy import Outcome, Scene, longer_than, too_slow, what_is_wrong
from tests.faults.tenants.table import ATTACKS
from tests.faults.tenants.tenant import Attack
from tests.faults.victim import Call, Victim

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.daemon import Daemons

SECONDS = 1.5
QUIET = Attack(lambda _: None)
MANY_SECONDS = 60.0


@pytest.fixture(scope="module")
def scene(daemons: Daemons, archives: list[Path], image: str) -> Iterator[Scene]:
    """A daemon that only these tests use, and a victim, at rest between them."""
    with daemons.without_leaks(settings={"log": {"level": "info"}}, archives=archives) as daemon:
        victim = Victim(daemon, image)
        try:
            with victim.living():
                pass  # what it keeps while it rests, its connection, is no leak of the first test
            yield Scene(daemon, victim, image)
        finally:
            victim.end()


def wrong(**seen: Any) -> str:
    call = Call("RemoveContainer", began_s=0.0, seconds=0.1, problem="")
    return "\n".join(what_is_wrong(outcome(**{"calls": [call], **seen}), QUIET))


def outcome(**seen: Any) -> Outcome:
    quiet: dict[str, Any] = {
        "answers": [],
        "stalls_s": {"cpu": 0.0, "wall": 0.0},
        "waited_s": 0.2,
        "daemon_kib": 60 << 10,
        "streaming_kib": 30 << 10,
        "tenant_cores": 0.0,
    }
    return Outcome(**(quiet | seen))


def test_what_is_noticed_is_judged() -> None:
    assert not wrong()
    failed = Call("ExecSync", began_s=0.0, seconds=0.1, problem="UNAVAILABLE: no")
    removed = Call("RemoveContainer", began_s=0.0, seconds=0.1, problem="")
    assert "UNAVAILABLE" in wrong(calls=[failed, removed])
    assert "no container" in wrong(calls=[])
    assert "more than 0.25 s in one turn" in wrong(stalls_s={"cpu": 0.25, "wall": 0.25})
    assert "stood still" in wrong(stalls_s={"cpu": 0.0, "wall": 0.25})
    assert not wrong(stalls_s={"cpu": 0.0, "wall": 0.25}, waited_s=0.3)  # a busy machine's doing
    assert "the daemon had" in wrong(daemon_kib=121 << 10)
    assert "the streaming process had" in wrong(streaming_kib=70 << 10)
    assert "another one" in wrong(problems=["the daemon is another one"])


def test_slow_is_a_kind_of_call_that_is_much_slower_than_beside_an_honest_tenant() -> None:
    quick = [Call("ListContainers", 0.0, seconds=0.001, problem="")] * 1000
    attacked = outcome(calls=[*quick, Call("ExecSync", 0.0, seconds=2.0, problem="")])
    assert too_slow(outcome(calls=quick)) == []
    assert "ExecSync" in "".join(too_slow(attacked))
    for honest_s, expected in ((0.1, 1), (0.9, 0)):
        honest = outcome(calls=[Call("ExecSync", 0.0, seconds=honest_s, problem="")])
        assert len(too_slow(attacked, honest)) == expected


def test_a_stall_is_longer_than_the_bounds_that_it_passed() -> None:
    before = {"cpu": {0.05: 3.0, 0.1: 4.0, 0.25: 4.0, inf: 4.0}}
    after = {"cpu": {0.05: 4.0, 0.1: 6.0, 0.25: 7.0, inf: 7.0}}
    assert longer_than(before, after) == {"cpu": 0.1}
    assert longer_than(after, after) == {"cpu": 0.0}


@pytest.mark.parametrize("name", ATTACKS)
def test_others_do_not_notice(scene: Scene, name: str) -> None:
    assert scene.judge(name, ATTACKS[name], SECONDS) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ATTACKS)
def test_others_do_not_notice_for_a_minute_either(scene: Scene, name: str) -> None:
    assert scene.judge(name, ATTACKS[name], MANY_SECONDS) == []
