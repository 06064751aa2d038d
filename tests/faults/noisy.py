"""What one tenant's attack does to the others: a victim's calls, the loops' stalls, memory. For long:

    python -m tests.faults.noisy [--seconds 60] [--only TEXT]

An attack goes on beside a victim (`victim`). No call of it may fail, nor be slow; the daemon's loop may not stand
still; the daemon and the streaming process may not grow. A machine that is busy with other things must not change the
verdict:

- Slow is what takes more than a second, and three times what it takes beside an honest tenant that computes as much.
  That is measured only where the attack made something slow, with more calls on both sides.
- A stall counts by the CPU time of the loop's thread. By the wall clock it counts only where the daemon's threads have
  not waited for a processor so long.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from prometheus_client.parser import text_string_to_metric_families

from tests.faults.looking import wait_until
from tests.faults.own_node import daemon_of_its_own
from tests.faults.tenants.table import ATTACKS
from tests.faults.tenants.tenant import Attack, Tenant
from tests.faults.victim import Victim, VictimError
from tests.harness import procs
from tests.harness.daemon import DaemonError
from tests.harness.slowness import SLOWNESS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.faults.victim import Call
    from tests.harness.daemon import Daemon

IMAGE = "test.example/busybox:1"
MAX_P99_S = 1.0
MAX_TIMES_HONEST = 3.0
MAX_STALL_S = 0.1
MAX_DAEMON_KIB = 120 << 10
MAX_STREAMING_KIB = 64 << 10
MAX_SESSION_KIB = 1 << 10
SESSIONS_OF_THE_VICTIM = 2
SETTLED_S = 20.0 * SLOWNESS
"""Until what was being made is undone."""
LONGER, ROUNDS = 3, 2
"""So many times the time, where it has to be looked at more closely, and so often: what only the machine did passes."""


@dataclass
class Outcome:
    """What was seen while an attack went on."""

    calls: Sequence[Call]
    answers: Sequence[str]
    """The attacker's."""
    stalls_s: dict[str, float]
    """By clock: a stall was longer than this, which is a bound of the histogram."""
    waited_s: float
    """How long the daemon's threads were ready to run and did not."""
    daemon_kib: int
    streaming_kib: int
    """The most that they held."""
    tenant_cores: float
    problems: list[str] = field(default_factory=list)

    @property
    def p99_s(self) -> dict[str, float]:
        """Of the victim's calls, by kind: the many that read memory would hide the few that start things."""
        kinds: dict[str, list[float]] = {}
        for call in self.calls:
            kinds.setdefault(call.name, []).append(call.seconds)
        return {
            kind: sorted(seconds)[math.ceil(0.99 * len(seconds)) - 1]
            for kind, seconds in kinds.items()
        }

    def slowest(self) -> str:
        """For people."""
        kind, seconds = max(self.p99_s.items(), key=lambda item: item[1], default=("no call", 0.0))
        return f"{kind} {seconds:.3f} s"

    def told(self) -> str:
        """What the attacker's calls came to, most often first."""
        codes = Counter(answer.partition(":")[0] for answer in self.answers)
        return (
            ", ".join(f"{code} {count} times" for code, count in codes.most_common()) or "nothing"
        )

    def __str__(self) -> str:
        stalls = ", ".join(f"{clock} > {s:g} s" for clock, s in self.stalls_s.items() if s)
        return (
            f"{len(self.calls)} calls, highest p99 {self.slowest()}; stalls {stalls or 'none'}; "
            f"daemon {self.daemon_kib >> 10} MiB, streaming {self.streaming_kib >> 10} MiB; "
            f"attacker was told {self.told()}; cores {self.tenant_cores:.1f}, waited {self.waited_s:.2f} s"
        )


class Scene:
    """One daemon, and one victim in it."""

    def __init__(self, daemon: Daemon, victim: Victim, image: str) -> None:
        self._daemon = daemon
        self._victim = victim
        self._image = image

    def judge(self, name: str, attack: Attack, seconds: float) -> list[str]:
        """Attack for so long; what was wrong then."""
        seen = self._observe(attack, seconds)
        found, slow = what_is_wrong(seen, attack), too_slow(seen)
        for _ in range(ROUNDS):
            if found or not slow:
                break
            seen = self._observe(attack, seconds * LONGER)
            cores = seen.tenant_cores + attack.cores
            honest = self._observe(honest_tenant(cores), seconds * LONGER)
            print(f"beside an honest tenant: {honest}", flush=True)
            found, slow = what_is_wrong(seen, attack), too_slow(seen, honest)
        print(f"{name}: {seen}", flush=True)
        return found + slow

    def _observe(self, attack: Attack, seconds: float) -> Outcome:
        daemon, victim = self._daemon, self._victim
        with tempfile.TemporaryDirectory(dir=daemon.tree) as directory:
            with victim.living():
                pids = _pids(daemon)
                with Tenant(daemon, self._image, Path(directory), seconds) as tenant:
                    for pid in pids:
                        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins here
                    before, waited_s = _stalls(daemon), _waited_s(pids[0])
                    n_before, began_s, cpu_s = (
                        len(victim.calls),
                        time.monotonic(),
                        time.process_time(),
                    )
                    problems = []
                    try:
                        attack.run(tenant)
                    except AssertionError as error:
                        problems.append(str(error))
                    cores = (time.process_time() - cpu_s) / (time.monotonic() - began_s)
            problems += _kept(daemon)
            if _pids(daemon) != pids:
                problems.append("the daemon or its streaming process is another one")
                peaks = [0, 0]
            else:
                peaks = [_peak_kib(pid) for pid in pids]
            return Outcome(
                calls=victim.calls[n_before:],
                answers=tenant.answers,
                stalls_s=longer_than(before, _stalls(daemon)),
                waited_s=_waited_s(pids[0]) - waited_s,
                daemon_kib=peaks[0],
                streaming_kib=peaks[1],
                tenant_cores=cores,
                problems=problems,
            )


def honest_tenant(cores: float) -> Attack:
    """Computes as much as an attack."""

    def run(tenant: Tenant) -> None:
        pod = tenant.pod()
        for _ in range(max(1, round(cores))):
            pod.start(pod.container("sh", "-c", "while :; do :; done"))
        tenant.begin()
        while tenant.goes_on():
            time.sleep(0.05)

    return Attack(run)


def what_is_wrong(seen: Outcome, attack: Attack) -> list[str]:
    """Everything but how slow the calls were."""
    found = list(seen.problems)
    failed = [call for call in seen.calls if call.problem]
    if failed:
        first = failed[0]
        found.append(
            f"{len(failed)} calls failed; {first.name} after {first.seconds:.1f} s: {first.problem}"
        )
    if not any(call.name == "RemoveContainer" for call in seen.calls):
        found.append("no container of the victim lived from its creation to its removal")
    if seen.stalls_s["cpu"]:
        found.append(
            f"the daemon's loop computed for more than {seen.stalls_s['cpu']:g} s in one turn"
        )
    if seen.stalls_s["wall"] > seen.waited_s:
        found.append(
            f"the daemon's loop stood still for more than {seen.stalls_s['wall']:g} s, "
            f"while its threads waited {seen.waited_s:.2f} s for a processor"
        )
    if seen.daemon_kib > MAX_DAEMON_KIB:
        found.append(f"the daemon had {seen.daemon_kib} KiB")
    most_kib = MAX_STREAMING_KIB + MAX_SESSION_KIB * (attack.sessions + SESSIONS_OF_THE_VICTIM)
    if seen.streaming_kib > most_kib:
        found.append(f"the streaming process had {seen.streaming_kib} KiB")
    return found


def too_slow(seen: Outcome, honest: Outcome | None = None) -> list[str]:
    """The kinds of calls that were slow, and much slower than beside an honest tenant."""
    bounds_s = {} if honest is None else honest.p99_s
    return [
        f"{kind}: p99 {seconds:.3f} s, beside an honest tenant {bounds_s.get(kind, 0.0):.3f} s"
        for kind, seconds in seen.p99_s.items()
        if seconds > max(MAX_P99_S, MAX_TIMES_HONEST * bounds_s.get(kind, 0.0))
    ]


# --- looking


def _kept(daemon: Daemon) -> list[str]:
    """What stays of pods and containers that were removed, of those that were being made, and of pulls."""
    tops = [
        top / kind for top in (daemon.root, daemon.state) for kind in ("sandboxes", "containers")
    ]
    places = [*tops, daemon.root / "images/.ingest", daemon.root / "layers/.ingest"]

    def kept() -> list[str]:
        return [str(path) for place in places if place.exists() for path in place.iterdir()]

    try:
        wait_until(lambda: not kept(), "nothing is kept", timeout_s=SETTLED_S)
    except TimeoutError:
        return [f"kept {SETTLED_S:g} s after its removal: {path}" for path in kept()]
    return []


def _pids(daemon: Daemon) -> list[int]:
    """The daemon's, then that of its streaming process."""
    assert daemon.pid is not None, f"the daemon ended\n{daemon.log_tail()}"
    return [daemon.pid, *procs.streamers_of({daemon.pid})]


def _peak_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _waited_s(pid: int) -> float:
    """Of all threads that are there now."""
    waited_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            waited_ns += int((task / "schedstat").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return waited_ns / 1e9


def _stalls(daemon: Daemon) -> dict[str, dict[float, float]]:
    """Of the daemon's loop, by clock: how many there were so far up to each bound."""
    url = f"http://127.0.0.1:{daemon.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=30) as page:
        families = text_string_to_metric_families(page.read().decode())
    found: dict[str, dict[float, float]] = {"cpu": {}, "wall": {}}
    for family in families:
        for sample in family.samples:
            if (
                sample.name == "cri_shim_loop_stall_seconds_bucket"
                and sample.labels["process"] == "daemon"
            ):
                found[sample.labels["clock"]][float(sample.labels["le"])] = sample.value
    return found


def longer_than(
    before: dict[str, dict[float, float]], after: dict[str, dict[float, float]]
) -> dict[str, float]:
    """By clock, the highest bound from `MAX_STALL_S` on that a stall was longer than; 0 for none."""
    longest = {}
    for clock, counts in after.items():
        new = {bound: count - before[clock][bound] for bound, count in counts.items()}
        total = new[math.inf]
        passed = [
            bound
            for bound, count in new.items()
            if MAX_STALL_S <= bound < math.inf and count < total
        ]
        longest[clock] = max(passed, default=0.0)
    return longest


def main() -> int:
    """Every attack for long, on a node of its own."""
    parser = argparse.ArgumentParser(description="Attack a node, and look at the others.")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each attack")
    parser.add_argument("--only", default="", help="attacks whose names have this")
    options = parser.parse_args()
    bad: dict[str, list[str]] = {}
    with daemon_of_its_own(IMAGE) as (daemon, _):
        for name, attack in ATTACKS.items():
            if options.only not in name:
                continue
            daemon.restart()
            victim = Victim(daemon, IMAGE)
            try:
                bad[name] = Scene(daemon, victim, IMAGE).judge(name, attack, options.seconds)
            except (VictimError, grpc.RpcError, DaemonError) as error:
                bad[name] = [f"{name}: {str(error)[:1000]}"]
            finally:
                victim.end()
            for what in bad[name]:
                print(f"  WRONG: {what}", flush=True)
    return 1 if any(bad.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
