"""Clients that churn pods and images as kubelets do and never give up, while the daemon is killed at random moments.

    python -m tests.faults.campaign [--seed N] [--kills 200] [--clients 4]

The daemon dies at a moment of chance, or at a step of a creation: of all that creations note, the one it has died at
least often (see `every_step`). A long campaign must have met every step that the source has.

Each client drives one pod after the other through its life: run, create, start, execs, wait or stop, remove; some pods
are on two networks, some have kernels of their own (kata-runtime's stand-in, and runsc where it is installed) or are
run by a shim, and some containers have an image for a volume. Between them it pulls and removes images, from a
registry that this process serves, and makes containers of them. Every call is repeated until it is answered, over as
many deaths of the daemon as it takes. Whatever the daemon has acknowledged is noted in a ledger before the next call.
After each start everything in the ledger must be there, in the state that was
told; a pull that was not acknowledged has left the whole image or nothing; in the end nothing at all may be left.
What happened otherwise is a violation, told with the seed.
The seed decides what clients do and when the daemon dies; which call a death meets is up to the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import secrets
import sys
import time
from typing import TYPE_CHECKING

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.faults.churn import IMAGE, Churn
from tests.faults.every_step import EveryStep, declared_steps
from tests.faults.ledger import Ledger
from tests.faults.own_node import daemon_of_its_own
from tests.faults.served_images import kept_on_disk, serve_images
from tests.harness import leaks
from tests.harness.daemon import DaemonError
from tests.integration.secure.conftest import secure_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.faults.ledger import Acknowledged
    from tests.harness.daemon import Daemon

UP_S = (0.05, 1.5)
"""A daemon lives at least and at most so long."""
GRACEFUL_SHARE = 0.15
"""Of the deaths, those by request."""
AT_A_STEP_SHARE = 0.35
"""And those at a step of a creation."""
STEP_WAIT_S = 3.0
"""How long a creation is waited for to come to that step; after that any moment will do."""
LONG_KILLS = 100
"""So many deaths must have met every step."""
SETTLE_S = 5.0


def run(daemon: Daemon, directory: Path, *, kills: int, clients: int, seed: int) -> Ledger:
    """Churn on a warm daemon until it has died `kills` times; the ledger says what went wrong.

    `directory` is empty, and for notes about steps.
    """
    settings, handlers = secure_settings(daemon)
    steps = EveryStep(daemon, directory, "kill")
    with daemon.changed_settings(settings):
        daemon.restart()
        try:
            with second_network(daemon) as network:
                ledger = _churn(
                    daemon, steps, network, handlers, kills=kills, clients=clients, seed=seed
                )
        finally:
            steps.end()
    ledger.steps.update(steps.met())
    if kills >= LONG_KILLS and not ledger.violations:
        if missed := declared_steps() - {name.partition(" ")[2] for name in ledger.steps}:
            ledger.violated(f"no death at a step named {', '.join(sorted(missed))}")
        if missed := steps.seen() - set(ledger.steps):
            ledger.violated(f"no death at {', '.join(sorted(missed))}")
    return ledger


@contextlib.contextmanager
def second_network(daemon: Daemon) -> Iterator[str]:
    """A network beside the default one, without anything that its plugins would keep; its name."""
    name = f"{daemon.name}-p"
    file = daemon.conf_dir / "20-second.conflist"
    ipam = {
        "type": "host-local",
        "dataDir": str(daemon.lease_dir),
        "ranges": [[{"subnet": "192.0.2.0/24"}]],
    }
    plugins = [{"type": "ptp", "ipam": ipam}]
    file.write_text(json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": plugins}))
    try:
        yield name
    finally:
        file.unlink()


def _die(daemon: Daemon, steps: EveryStep, moments: random.Random) -> None:
    chance = moments.random()
    if chance < GRACEFUL_SHARE:
        daemon.stop()
        return
    if chance < GRACEFUL_SHARE + AT_A_STEP_SHARE and (seen := sorted(steps.seen())):
        met = steps.met()
        steps.arm(min(seen, key=met.count))
        with contextlib.suppress(DaemonError):
            daemon.wait_ended(timeout_s=STEP_WAIT_S)
        steps.disarm()
    daemon.kill9()


def _churn(
    daemon: Daemon,
    steps: EveryStep,
    network: str,
    handlers: Sequence[str],
    *,
    kills: int,
    clients: int,
    seed: int,
) -> Ledger:
    ledger = Ledger()
    moments = random.Random(seed)
    kept = kept_on_disk(daemon.root)
    names = _image_names(daemon)
    with serve_images(clients) as served:
        churns = [
            Churn(number, daemon, ledger, served, network, seed, handlers)
            for number in range(clients)
        ]
        for churn in churns:
            churn.start()
        try:
            for _ in range(kills):
                time.sleep(moments.uniform(*UP_S))
                _die(daemon, steps, moments)
                ledger.deaths += 1
                acknowledged = ledger.snapshot()
                daemon.start()
                _check(daemon, ledger, acknowledged)
                if ledger.violations:
                    break
        finally:
            for churn in churns:
                churn.end()
            for churn in churns:
                churn.join()
    left = [pod.id for pod in daemon.client.pods()]
    left += [container.id for container in daemon.client.containers()]
    if left and not ledger.violations:
        ledger.violated(f"every client has removed its pods, and these are listed: {left}")
    if not ledger.violations:
        _check_images_gone(daemon, ledger, names, kept)
    return ledger


def _check_images_gone(daemon: Daemon, ledger: Ledger, names: set[str], kept: set[str]) -> None:
    """Every client has removed what it pulled: images, blobs and layers are as they were before."""
    if more := _image_names(daemon) - names:
        ledger.violated(f"every client has removed its images, and these are listed: {more}")
    deadline = time.monotonic() + SETTLE_S
    while left := kept_on_disk(daemon.root) - kept:
        if time.monotonic() > deadline:
            ledger.violated(f"every client has removed its images, and this is kept: {left}")
            return
        time.sleep(0.05)


def _image_names(daemon: Daemon) -> set[str]:
    images = daemon.client.images.ListImages(api.ListImagesRequest(), timeout=10).images
    return {name for image in images for name in (image.id, *image.repo_tags, *image.repo_digests)}


def _check(daemon: Daemon, ledger: Ledger, before: Acknowledged) -> None:
    """What was acknowledged before the death, and is not asked to go by now, is there."""
    ready = {item.id for item in daemon.client.pods() if item.state == api.SANDBOX_READY}
    running = {
        item.id for item in daemon.client.containers() if item.state == api.CONTAINER_RUNNING
    }
    images = {
        (name, image_id)
        for name, image_id in before.images
        if daemon.client.image_id(name) == image_id
    }
    now = ledger.snapshot()
    lost = [
        *(f"pod {pod}" for pod in (before.pods & now.pods) - ready),
        *(f"running container {each}" for each in (before.running & now.running) - running),
        *(f"image {name} ({image_id})" for name, image_id in (before.images & now.images) - images),
    ]
    for each in lost:
        ledger.violated(f"after death {ledger.deaths}: {each} was acknowledged and is not there")


def main() -> int:
    """A campaign of its own, on a node of its own."""
    parser = argparse.ArgumentParser(description="Kill the daemon at random moments.")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31))
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--clients", type=int, default=4)
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.clients} clients", flush=True)
    ledger = Ledger()
    left = "not asked"
    try:
        with daemon_of_its_own(IMAGE) as (daemon, notes):
            ledger = run(
                daemon,
                notes,
                kills=options.kills,
                clients=options.clients,
                seed=options.seed,
            )
            daemon.restart()
        left = "nothing left behind"
    except leaks.LeakError as error:
        ledger.violated(str(error))
        left = "something left behind"
    report(ledger)
    print(f"leak guard: {left}")
    return 1 if ledger.violations else 0


def report(ledger: Ledger) -> None:
    """What was called how often, how often a death came between, and what was violated."""
    print(f"deaths: {ledger.deaths}")
    met = ", ".join(f"{name} {count}" for name, count in sorted(ledger.steps.items()))
    print(f"of these at a step: {met or 'none'}")
    print(f"pulls without an answer whose image was there: {ledger.pulls_found_whole}")
    for name, count in sorted(ledger.calls.items()):
        interrupted, cut_off = ledger.interrupted[name], ledger.cut_off[name]
        print(f"{name:20} {count:6} answered {interrupted:6} interrupted {cut_off:6} under way")
    print(f"violations: {len(ledger.violations)}")
    for violation in ledger.violations:
        print(f"violation: {violation}")


if __name__ == "__main__":
    sys.exit(main())
