"""Connects a command to the daemon: the options that select the daemon, and the client."""

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
    """Add `--socket`, `--config` and `--set`."""
    parser.add_argument(
        "--socket",
        type=Path,
        metavar="PATH",
        help="the daemon's unix socket (default: as configured)",
    )
    add_config_options(parser)


def connect(arguments: argparse.Namespace) -> Client:
    """Connect to the daemon that the options select.

    Raises: ConfigError; UnavailableError if no daemon answers on the socket.
    """
    config = load_config(arguments.config, arguments.set)
    sockets = [arguments.socket] if arguments.socket else [url.socket_path for url in config.listen]
    for path in sockets:
        if path is not None:
            return Client(path, max_message_bytes=config.limits.grpc_message_bytes)
    raise ConfigError(
        "listen: has no unix socket, which commands need to reach the daemon: use --socket PATH"
    )
