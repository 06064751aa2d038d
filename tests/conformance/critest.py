"""critest against the real daemon, whole: random order, no retries, judged by `skips.toml` and `passed.txt`.

    python -m tests.conformance.critest [--runs N] [--seed N] [--focus REGEX] [--websocket] [--runtime FILE]
        [--runsc | --shim] [--no-skips] [--accept] [--reports DIR]

Each run has a daemon of its own, on the isolated node of the integration tests; what it leaves behind is a failure like
any other. The report, critest's output and the daemon's log of each run stay in the reports directory if one failed or
if the directory was named.
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.host.mounts import unmount_below
from tests.conformance import packages
from tests.conformance.crictl import missing
from tests.conformance.mirror import Mirror
from tests.conformance.verdict import Outcome, Spec, Verdict, judge, parse_report, parse_skips
from tests.harness import leaks, node
from tests.harness.daemon import DaemonError, Daemons, environment
from tests.harness.isolation import Session
from tests.integration.secure.conftest import RUNSC, runsc_handler
from tests.integration.shim.conftest import SHIM, shim_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

HERE = Path(__file__).parent
SKIPS_FILE = HERE / "skips.toml"
RUNSC_SKIPS_FILE = HERE / "skips-runsc.toml"
PASSED_FILE = HERE / "passed.txt"
TIMEOUT_S = 1800
"""Of one run; two minutes are usual."""


def main() -> int:
    """Run it as the command line says; 1 if a run failed."""
    options = _parser().parse_args()
    lacking = [*node.missing(runsc=options.runsc), *missing("critest")]
    if lacking:
        print(node.sentence(lacking), file=sys.stderr)
        return 1
    skips = parse_skips(SKIPS_FILE.read_bytes())
    if options.runsc:
        skips = [*parse_skips(RUNSC_SKIPS_FILE.read_bytes()), *skips]
    try:
        files = packages.fetch()
    except packages.PackageError as error:
        print(error, file=sys.stderr)
        return 1
    reports = options.reports or Path(tempfile.mkdtemp(prefix="cri-shim-critest."))
    session = Session()
    session.claim()
    verdicts = []
    passed_always: set[str] | None = None
    try:
        session.enter()
        daemons = Daemons(session.token, session.namespaces)
        with Mirror(reports / "registries", files) as mirror:
            for number in range(1, options.runs + 1):
                seed = options.seed + number - 1
                run = _Run(
                    reports / f"run-{number:02d}",
                    seed,
                    options.focus,
                    options.runtime,
                    websocket=options.websocket,
                    handler=RUNSC if options.runsc else SHIM if options.shim else "",
                )
                # What passes in gVisor is what its own list of skips leaves.
                passed = [] if options.runsc else PASSED_FILE.read_text().splitlines()
                print(f"run {number} of {options.runs}, seed {seed}", flush=True)
                try:
                    specs = run.specs(daemons, mirror)
                    verdict = judge(specs, skips, passed, whole=not options.focus)
                    if options.runsc:
                        verdict.new_passes.clear()
                    if options.no_skips:
                        verdict.complaints += [
                            f"skipped, and --no-skips says that none may be: {spec.name}"
                            for spec in specs
                            if spec.outcome is Outcome.SKIPPED
                        ]
                    _print_groups(specs)
                    newly = set(verdict.new_passes)
                    passed_always = newly if passed_always is None else passed_always & newly
                except (leaks.LeakError, DaemonError, grpc.RpcError, ValueError) as error:
                    verdict = Verdict(complaints=[str(error)])
                _print_verdict(verdict)
                verdicts.append(verdict)
    finally:
        session.release()
    if options.accept and passed_always:
        PASSED_FILE.write_text("".join(f"{name}\n" for name in sorted({*passed, *passed_always})))
        print(f"added to {PASSED_FILE.name}: {len(passed_always)}")
    failures = sum(bool(verdict.complaints) for verdict in verdicts)
    print(f"critest: {len(verdicts)} runs, {failures} failed")
    if options.reports or failures:
        print(f"reports: {reports}")
    else:
        shutil.rmtree(reports)
    return 1 if failures else 0


class _Run:
    """One run, and the directory of what it leaves to read."""

    def __init__(
        self, directory: Path, seed: int, focus: str, runtime: str, *, websocket: bool, handler: str
    ) -> None:
        self._directory = directory
        self._seed = seed
        self._focus = focus
        self._runtime = runtime
        self._websocket = websocket
        self._handler = handler
        directory.mkdir(parents=True)

    def specs(self, daemons: Daemons, mirror: Mirror) -> list[Spec]:
        """Raises: LeakError, DaemonError; ValueError for a report that says nothing."""
        settings = dict(mirror.settings())
        if self._runtime:
            settings["runtime"] = {"handlers": {"runc": {"path": self._runtime}}}
        if self._handler == RUNSC:
            settings["runtime"] = {"handlers": {RUNSC: runsc_handler()}}
        if self._handler == SHIM:
            settings |= shim_settings()
        with daemons.without_leaks(settings=settings) as daemon:
            try:
                self._run(daemon)
                _remove_images(daemon.client)
            finally:
                (self._directory / "daemon.log").write_text(daemon.log())
        report = self._directory / "report.json"
        if not report.exists():
            raise ValueError(f"critest left no report: see {self._directory}/output.txt")
        return parse_report(report.read_bytes())

    def _run(self, daemon: Daemon) -> None:
        endpoint = f"unix://{daemon.socket}"
        command = [
            "critest",
            f"-runtime-endpoint={endpoint}",
            f"-image-endpoint={endpoint}",
            "-ginkgo.randomize-all",
            f"-ginkgo.seed={self._seed}",
            f"-ginkgo.timeout={TIMEOUT_S - 60}s",
            f"-ginkgo.json-report={self._directory / 'report.json'}",
            "-ginkgo.no-color",
        ]
        if self._websocket:
            command += ["-websocket-exec", "-websocket-attach", "-websocket-portforward"]
        if self._handler:
            command.append(f"-runtime-handler={self._handler}")
        if self._focus:
            command.append(f"-ginkgo.focus={self._focus}")
        with (
            tempfile.TemporaryDirectory() as scratch,
            (self._directory / "output.txt").open("w") as out,
        ):
            # Its status says what the report says, too.
            subprocess.run(
                command,
                cwd=scratch,
                env={**environment(), "TMPDIR": scratch, "HOME": scratch},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                timeout=TIMEOUT_S,
                check=False,
            )
            # A spec of mounts that fails leaves its own there.
            unmount_below(Path(scratch))


def _remove_images(client: Client) -> None:
    """Take away what was pulled, so that a layer which stays is seen as left behind."""
    for image in client.images.ListImages(api.ListImagesRequest()).images:
        if not image.pinned:
            client.images.RemoveImage(api.RemoveImageRequest(image=api.ImageSpec(image=image.id)))


def _print_groups(specs: Sequence[Spec]) -> None:
    groups: dict[str, Counter[Outcome]] = {}
    seconds: dict[str, float] = {}
    for spec in specs:
        groups.setdefault(spec.group, Counter())[spec.outcome] += 1
        seconds[spec.group] = seconds.get(spec.group, 0.0) + spec.seconds
    print(f"  {'group':<40} {'passed':>6} {'failed':>6} {'skipped':>7} {'seconds':>8}")
    for name, counts in sorted(groups.items()):
        if set(counts) != {Outcome.NOT_SELECTED}:
            skipped = counts[Outcome.SKIPPED] + counts[Outcome.NOT_SELECTED]
            print(
                f"  {name:<40} {counts[Outcome.PASSED]:6} {counts[Outcome.FAILED]:6} {skipped:7} {seconds[name]:8.1f}"
            )


def _print_verdict(verdict: Verdict) -> None:
    for note in verdict.notes:
        print(f"  note: {note}")
    for name in verdict.new_passes:
        print(f"  new, keep it with --accept: {name}")
    for complaint in verdict.complaints:
        print(f"  FAILED: {complaint}")
    print(f"  {'FAILED' if verdict.complaints else 'ok'}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="critest", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="how often; default 1")
    parser.add_argument(
        "--seed",
        type=int,
        default=secrets.randbelow(1 << 31),
        metavar="N",
        help="of the first run's order, the next has the next; default random",
    )
    parser.add_argument("--focus", default="", metavar="REGEX", help="only specs whose names match")
    parser.add_argument(
        "--websocket", action="store_true", help="stream over WebSocket instead of SPDY"
    )
    parser.add_argument(
        "--runtime", default="", metavar="FILE", help="the handler runc's executable; default runc"
    )
    parser.add_argument(
        "--runsc", action="store_true", help="pods in gVisor, by a handler of kind vm"
    )
    parser.add_argument(
        "--shim",
        action="store_true",
        help="pods of containerd-shim-runc-v2, by a handler of kind shim",
    )
    parser.add_argument(
        "--no-skips",
        action="store_true",
        help="a skipped spec is a failure: this machine has it all",
    )
    parser.add_argument(
        "--accept", action="store_true", help="add what passed in every run to passed.txt"
    )
    parser.add_argument(
        "--reports", type=_new_dir, metavar="DIR", help="keep reports and logs here"
    )
    return parser


def _new_dir(text: str) -> Path:
    path = Path(text).absolute()
    if path.exists() and any(path.iterdir()):
        raise argparse.ArgumentTypeError(f"{path} is not empty")
    path.mkdir(parents=True, exist_ok=True)
    return path


if __name__ == "__main__":
    sys.exit(main())
