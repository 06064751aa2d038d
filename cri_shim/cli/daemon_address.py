"""Which daemon a command talks to: the options for it, and the connection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.cli.parser import add_config_options
from cri_shim.config import load_config
from cri_shim.errors import ConfigError
from cri_shim.rpc.client import Client

if TYPE_CHECKING:
    import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Let the user say where the daemon is."""
    parser.add_argument(
        "--socket",
        type=Path,
        metavar="PATH",
        help="the daemon's unix socket (default: as configured)",
    )
    add_config_options(parser)


def connect(arguments: argparse.Namespace) -> Client:
    """The connection that the options ask for.

    Raises: ConfigError, and UnavailableError when no daemon answers there.
    """
    config = load_config(arguments.config, arguments.set)
    sockets = [arguments.socket] if arguments.socket else [url.socket_path for url in config.listen]
    for path in sockets:
        if path is not None:
            return Client(path, max_message_bytes=config.limits.grpc_message_bytes)
    raise ConfigError("listen: names no unix socket, and commands use no other; say --socket PATH")
