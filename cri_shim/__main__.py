"""The entry point of `cri-shim` and `python -m cri_shim`: parses the command line and runs the command.

Rules:
- Only the module of the requested command is imported, so that `cri-shim version` does not load gRPC.
- A command's module has `configure(parser)`, which adds arguments, and `run(args) -> int`, which returns the exit code.
  A module with subcommands sets `run` in each subcommand's defaults instead.
- Exit codes: 0 for success; 1 for a failure, with a line that says what to do (a line per mistake for a configuration);
  2 for a wrong command line, with one line; 128 + signal after an interrupt.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from cri_shim import __version__
from cri_shim.cli.parser import Parser, suggest
from cri_shim.errors import ConfigError, CriShimError

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


class Command(NamedTuple):
    """A command: its module, and its summary for `--help`."""

    module: str
    summary: str


COMMANDS = {
    "serve": Command("cri_shim.cli.serve", "run the daemon, in the foreground"),
    "check": Command("cri_shim.cli.check", "check the node's requirements, and name the remedies"),
    "config": Command(
        "cri_shim.cli.config", "print the default or effective configuration; check a file"
    ),
    "demo": Command(
        "cri_shim.cli.demo", "run a pod on the daemon, from its creation to its removal"
    ),
    "image": Command("cri_shim.cli.image", "pull, import, export, list, check and remove images"),
    "status": Command("cri_shim.cli.status", "show pods and containers, and what each waits for"),
    "wipe": Command("cri_shim.cli.wipe", "remove every pod and container of this root"),
    "version": Command(
        "cri_shim.cli.version", "print versions of this program, conmon and the runtimes"
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command of `argv` (default: the process's arguments) and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader closed the pipe, like `| head`. Python flushes stdout once more at exit, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except ConfigError as error:
        # The text has a line `FILE: path.to.key: ...` for each mistake, so it gets no prefix.
        print(error, file=sys.stderr)
        return EXIT_FAILED
    except CriShimError as error:
        return _fail(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        return _fail(f"{where}{error.strerror or error}")
    return code


def _run(arguments: list[str]) -> int:
    name = next((word for word in arguments if not word.startswith("-")), None)
    parser, chosen = _parsers(name)
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        chosen.error(f"unknown argument {unknown[0]!r}")
    if chosen is parser:
        parser.error(f"no command given; commands: {', '.join(COMMANDS)}")
    return int(args.run(args))


def _parsers(selected: str | None) -> tuple[Parser, Parser]:
    """The parser of the whole command line, and that of the selected command, or the same one without a command."""
    parser = Parser(
        "cri-shim",
        description="A Kubernetes CRI server: pods and containers through OCI runtimes such as runc and crun.",
        epilog="'cri-shim COMMAND --help' describes a command. Start with: cri-shim check",
    )
    parser.add_argument("--version", action="version", version=f"cri-shim {__version__}")
    if selected is not None and selected not in COMMANDS:
        parser.error(f"unknown command {selected!r}; {suggest(selected, list(COMMANDS))}")
    chosen = parser
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", parser_class=Parser)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
        )
        if name == selected:
            module = import_module(command.module)
            if hasattr(module, "run"):
                sub.set_defaults(run=module.run)
            module.configure(sub)
            chosen = sub
    return parser, chosen


def _fail(message: str) -> int:
    # The output of a plugin or runtime in the message may have several lines.
    print(f"cri-shim: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
