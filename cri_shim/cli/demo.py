"""`cri-shim demo`: runs a pod on the daemon from image to removal, and verifies each answer of the daemon.

Rules:
- Everything that was created is removed again, also after a failed step and after SIGINT, SIGTERM or SIGHUP. The first
  signal takes effect at the end of the running step, since a cancelled call would leave objects with unknown IDs. A
  second signal ends the demo at once; it then prints what it leaves.
- With `--keep` a successful demo leaves its pod, image and log.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from cri_shim._pb.admin.v1 import admin_pb2
from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.cli import daemon_address
from cri_shim.cli import demo_requests as requests
from cri_shim.cli.demo_pod import CALL_TIMEOUT_S, DemoPod
from cri_shim.cli.demo_proofs import Proofs
from cri_shim.cli.demo_screen import ImportProgress, Screen
from cri_shim.cli.interrupts import InterruptedCommandError, Interrupts
from cri_shim.cli.progress import size_text
from cri_shim.errors import CriShimError, NotReadyError, PermissionRefusedError
from cri_shim.rpc.client import errors_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from cri_shim.rpc.client import Client

_INTERRUPTED = "interrupted: waiting for the running step; interrupt again to end at once"
_LOG_SAYS_MORE = "the daemon's log says more"
_CHECK_SAYS_MORE = "`cri-shim check` and the daemon's log say more"


class DemoFailedError(CriShimError):
    """A step failed, or something is left. The message names it, the cause and the remedy."""


class Step(NamedTuple):
    """One step: its name, a description, its function, and the remedy for a failure."""

    name: str
    doing: str
    run: Callable[[], str]
    remedy: str


class _CniInfo(msgspec.Struct):
    networks: list[str] = []


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--keep", action="store_true", help="leave the pod running, and print how to inspect it"
    )
    daemon_address.add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo. Raises CriShimError for a failed step; returns 128 + signal after an interrupt."""
    if os.geteuid() != 0:
        raise PermissionRefusedError(
            "only root can run the demo, since it reads the pod's log: use sudo"
        )
    with daemon_address.connect(arguments) as client:
        return Demo(client, Screen(sys.stdout)).run(keep=arguments.keep)


class Demo:
    """One run of the demo against one daemon."""

    def __init__(self, client: Client, screen: Screen) -> None:
        self._client = client
        self._screen = screen
        self._pod = DemoPod(client)
        self._proofs = Proofs(self._pod)
        self._network = ""
        self._ips: list[str] = []

    def run(self, *, keep: bool) -> int:
        """Run every step in order, and print how to inspect a pod that stays. Returns the exit code."""
        with Interrupts.handled(_INTERRUPTED) as interrupts:
            try:
                self._run_steps(self._steps(keep=keep), interrupts)
            except InterruptedCommandError:
                self._clean_up("interrupted, and ")
                self._screen.say("interrupted; everything that was created is removed again")
                return 128 + interrupts.received
            except KeyboardInterrupt:
                raise DemoFailedError(f"interrupted twice{self._what_is_left()}") from None
            except Exception as error:
                self._clean_up(f"{error}; and ")
                raise
        self._screen.say(f"the demo succeeded in {self._screen.seconds:.1f} s")
        if keep:
            for line in self._how_to_look():
                self._screen.say(line)
        return 0

    def _steps(self, *, keep: bool) -> list[Step]:
        steps = [
            Step("daemon", "asking whether it can run pods", self._meet_daemon, _CHECK_SAYS_MORE),
            Step("image", "importing one without a registry", self._bring_image, _LOG_SAYS_MORE),
            Step("pod", "running it on the network", self._run_pod, _CHECK_SAYS_MORE),
            Step("container", "starting its container", self._run_container, _CHECK_SAYS_MORE),
            Step("log", "reading what the container wrote", self._read_log, _LOG_SAYS_MORE),
            Step("exec", "running a command in the container", self._exec, _LOG_SAYS_MORE),
            Step(
                "network",
                "asking the pod's web server from this node",
                self._fetch,
                "the kubelet's probes use the same path: check this node's firewall and routes, and the plugins of "
                "the network",
            ),
            Step("stats", "reading what it uses", self._proofs.usage, _CHECK_SAYS_MORE),
        ]
        if not keep:
            end = "stopping it and removing everything"
            steps.append(Step("removal", end, self._remove, _LOG_SAYS_MORE))
        return steps

    def _run_steps(self, steps: list[Step], interrupts: Interrupts) -> None:
        self._proofs.check_interrupted = interrupts.check
        for number, step in enumerate(steps, start=1):
            self._screen.begin(step.name, step.doing, number=number, of=len(steps))
            try:
                result = step.run()
            except CriShimError as error:
                self._screen.fail(step.name)
                raise DemoFailedError(
                    f"the demo failed at step {number} of {len(steps)}, {step.name}: {error}; {step.remedy}"
                ) from error
            self._screen.end(step.name, result)
            interrupts.check()

    def _clean_up(self, before: str) -> None:
        """Remove what was created. Raises DemoFailedError, with `before` in front, if something is left."""
        try:
            self._pod.take_away()
        except CriShimError as error:
            raise DemoFailedError(
                f"{before}not everything could be removed: {error}{self._what_is_left()}"
            ) from error
        except KeyboardInterrupt:
            raise DemoFailedError(f"{before}interrupted again{self._what_is_left()}") from None

    def _what_is_left(self) -> str:
        left = self._pod.left_behind()
        return f"; remove what is left with: {' && '.join(left)}" if left else ""

    # --- the steps -----------------------------------------------------------------------------------------------

    def _meet_daemon(self) -> str:
        with errors_of("cannot get the daemon's status"):
            info = self._client.admin.Info(admin_pb2.InfoRequest(), timeout=CALL_TIMEOUT_S)
            status = self._client.runtime.Status(
                api.StatusRequest(verbose=True), timeout=CALL_TIMEOUT_S
            )
        for condition in status.status.conditions:
            if not condition.status:
                raise NotReadyError(f"{condition.type} is false: {condition.message}")
        networks = msgspec.json.decode(status.info["cni"], type=_CniInfo).networks
        self._network = networks[0]
        handler = info.handlers[0]
        return f"cri-shim {info.version} on {self._client.socket_path}, {handler.name} {handler.version}"

    def _bring_image(self) -> str:
        image, was_here = self._pod.bring_image(ImportProgress(self._screen))
        origin = "already present" if was_here else "built from this node's busybox and imported"
        return f"{requests.IMAGE}, {size_text(image.size)}, {origin}"

    def _run_pod(self) -> str:
        self._ips = self._proofs.addresses(self._pod.run_sandbox())
        return f"{self._pod.name} is ready, IP {', '.join(self._ips)} on network {self._network}"

    def _run_container(self) -> str:
        self._pod.run_container()
        self._proofs.require_running()
        return "a web server, running as nobody and without capabilities"

    def _read_log(self) -> str:
        lines = self._proofs.log()
        return "\n".join([f"{len(lines)} lines, complete and in CRI's format:", *lines])

    def _exec(self) -> str:
        hostname, addresses = self._proofs.inside(self._ips)
        return f"inside, the host name is {hostname} and {requests.INTERFACE} has {', '.join(addresses)}"

    def _fetch(self) -> str:
        url, answer = self._proofs.page(self._ips[0])
        return f"{url} answers: {answer}"

    def _remove(self) -> str:
        self._pod.stop_container()
        self._proofs.graceful_end()
        self._pod.take_away()
        *gone, last = self._pod.require_gone()
        return f"the container ended with exit code 0; {', '.join(gone)} and {last} are removed"

    def _how_to_look(self) -> Iterator[str]:
        container = self._pod.container_id[:13]
        yield "the pod is kept; inspect it with:"
        yield f"  export CONTAINER_RUNTIME_ENDPOINT={self._pod.endpoint}"
        yield f"  crictl pods --label demo={self._pod.name}"
        yield f"  crictl logs {container}"
        yield f"  crictl exec -s {container} ps"
        yield f"  crictl stats {container}"
        yield "and remove it with:"
        for command in self._pod.left_behind():
            yield f"  {command}"
