"""`cri-shim wipe`: removes every pod and container of this root, through the daemon or without one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cri_shim._pb.admin.v1 import admin_pb2 as admin
from cri_shim.cli import daemon_address
from cri_shim.cli.output import counted, is_screen, printable
from cri_shim.cli.progress import Progress
from cri_shim.config import load_config
from cri_shim.errors import UnavailableError
from cri_shim.paths import Paths
from cri_shim.rpc.client import errors_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from cri_shim.config import Config

    Tell = Callable[[admin.WipeResponse], None]

EXIT_LEFT = 1
DOING = "cannot wipe"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    parser.add_argument(
        "--images", action="store_true", help="remove all images as well, pinned ones included"
    )
    daemon_address.add_options(parser)
    parser.description = (
        "Remove every pod and container of this root with all they hold: processes, mounts, network\n"
        "namespaces, cgroups, network attachments, and what a crash left of others."
    )
    parser.epilog = (
        "Drain the node and stop the kubelet first: a running kubelet creates its pods again.\n"
        "A running daemon does the work and continues to serve; without one the command does it. Other\n"
        "runtimes and other roots of the node keep theirs; the pods' log files stay. May be repeated.\n"
        "Exit code 1 and one line for each object that could not be removed."
    )


def run(arguments: argparse.Namespace) -> int:
    """Ask for confirmation, wipe, and report. Returns 1 if something is left."""
    config = load_config(arguments.config, arguments.set)
    if not arguments.yes and not _agreed(question(config, images=arguments.images)):
        print("nothing was removed")
        return EXIT_LEFT
    screen = is_screen(sys.stdout)
    progress = Progress(sys.stdout, keeps_steps=not screen)
    left: list[admin.WipeLeft] = []
    sums = admin.WipeSums()

    def tell(answer: admin.WipeResponse) -> None:
        if answer.HasField("progress"):
            progress.show(step_text(answer.progress) if screen else answer.progress.step)
        elif answer.HasField("left"):
            left.append(answer.left)
        else:
            sums.CopyFrom(answer.sums)

    try:
        _wipe(arguments, config, admin.WipeRequest(images=arguments.images), tell)
    finally:
        progress.close()
    for line in report(sums, left):
        progress.say(line)
    return EXIT_LEFT if left else 0


def _wipe(
    arguments: argparse.Namespace, config: Config, request: admin.WipeRequest, tell: Tell
) -> None:
    """Wipe through the daemon; without a daemon, and unless `--socket` is given, in this process.

    Raises UnavailableError if neither is possible, and the errors of the call.
    """
    try:
        client = daemon_address.connect(arguments)
    except UnavailableError as error:
        if arguments.socket is not None:
            raise
        # Imported here, since the modules that open a root take long to import.
        from cri_shim.cli.wipe_local import wipe_offline

        wipe_offline(config, request, tell, no_daemon=str(error))
        return
    with client, errors_of(DOING):
        for answer in client.admin.Wipe(request):
            tell(answer)


def question(config: Config, *, images: bool) -> str:
    """The confirmation question. Objects are counted by their directories, which works without a daemon, too."""
    paths = Paths(config.root, config.state)
    pods, containers = (
        sum(1 for _ in directory.iterdir()) if directory.is_dir() else 0
        for directory in (paths.sandboxes_dir, paths.containers_dir)
    )
    what = f"{counted(pods, 'pod')} and {counted(containers, 'container')}"
    return (
        f"Remove everything in {config.root}: {what}{', and all images' if images else ''}? [y/N] "
    )


def _agreed(text: str) -> bool:
    print(text, end="", flush=True)
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):
        print()
    return answer.strip().lower() in ("y", "yes")


def step_text(progress: admin.WipeProgress) -> str:
    """A step and its progress as text."""
    if not progress.total:
        return progress.step
    return f"{progress.step}: {progress.done} of {progress.total}"


def report(sums: admin.WipeSums, left: Sequence[admin.WipeLeft]) -> list[str]:
    """The result of a wipe: what is left, what was removed, and the remedy."""
    gone = [
        counted(sums.sandboxes, "pod"),
        counted(sums.containers, "container"),
        *([counted(sums.leftovers, "leftover")] if sums.leftovers else []),
        *([counted(sums.attachments, "pending network delete")] if sums.attachments else []),
        *([counted(sums.images, "image")] if sums.images else []),
    ]
    lines = [f"left: {printable(each.what)}: {printable(each.why)}" for each in left]
    lines.append(f"removed: {', '.join(gone)}")
    if left:
        lines.append(
            f"{counted(len(left), 'object')} could not be removed: fix the cause and run `cri-shim wipe` again"
        )
    return lines
