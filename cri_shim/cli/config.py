"""`cri-shim config`: prints the default or the effective configuration, and checks files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.cli.parser import add_config_options
from cri_shim.config import DEFAULT_FILE, load_config

if TYPE_CHECKING:
    import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands."""
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", required=True)
    default = commands.add_parser(
        "default",
        help="print the default file, with comments",
        description="Print the default configuration file, with a comment above each key.",
    )
    default.set_defaults(run=run_default)
    show = commands.add_parser(
        "show",
        help="print the effective configuration",
        description="Print the effective configuration: defaults, file, drop-ins and --set together.",
    )
    add_config_options(show)
    show.set_defaults(run=run_show)
    check = commands.add_parser(
        "check",
        help="check a file, and list every mistake",
        description="Check a configuration file and its drop-ins. Exit code 1 if there is a mistake.",
    )
    check.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help=f"default: {DEFAULT_FILE}, if it is there",
    )
    check.set_defaults(run=run_check)


def run_default(_args: argparse.Namespace) -> int:
    """Print the default file."""
    from cri_shim.config.render import default_yaml

    sys.stdout.write(default_yaml())
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Print the effective configuration. Raises ConfigError."""
    from cri_shim.config.render import effective_yaml

    sys.stdout.write(effective_yaml(load_config(args.config, args.set)))
    return 0


def run_check(args: argparse.Namespace) -> int:
    """Check a file and its drop-ins. Raises ConfigError with every mistake."""
    load_config(args.file)
    file = args.file or DEFAULT_FILE
    print(f"{file}: ok" if file.exists() else f"{file}: does not exist, the defaults apply")
    return 0
