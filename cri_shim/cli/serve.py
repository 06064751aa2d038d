"""`cri-shim serve`: runs the daemon in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim import event_loop, log
from cri_shim.cli.parser import add_config_options
from cri_shim.config import load_config
from cri_shim.daemon.lifecycle import Daemon
from cri_shim.host.signals import reset_signals

if TYPE_CHECKING:
    import argparse

CNI_CACHE_DIR = Path("/var/lib/cni/results")
"""libcni's cache of results, shared with other runtimes of the node."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_config_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT. Raises CriShimError if the daemon cannot start."""
    config = load_config(arguments.config, arguments.set)
    log.configure(level=config.log.level, format=config.log.format)
    reset_signals()
    daemon = Daemon(
        config,
        reread=lambda: load_config(arguments.config, arguments.set),
        cni_cache_dir=CNI_CACHE_DIR,
    )
    event_loop.run(daemon.run())
    return 0
