"""The process: its arguments, environment, working directory, stop signal.

Rules of the file: the request comes before the image, the image before our defaults. Nothing is guessed: no
command is an error, never a shell. Kubernetes' semantics of command and args against ENTRYPOINT and CMD hold.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from cri_shim.errors import InvalidArgumentError
from cri_shim.oci.spec.checks import (
    absolute_path,
    clean_container_path,
    has_control_characters,
    no_nul,
    refuse,
)
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cri_shim._pb.cri.v1.api_pb2 import ContainerConfig
    from cri_shim.oci.spec.inputs import ImageDefaults, ResolvedUser, Spec, Ulimit

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# CVE-2024-21626: a descriptor of the host, leaked into the runtime's first process, becomes the container's
# working directory through these links. No honest image or pod starts there.
_MAGIC_LINK = re.compile(r"/(proc/(self|thread-self|\d+)(/task/\d+)?|dev)/(fd|cwd|root)(/|$)")

_MAGIC_LINK_PARTS = 6
"""/proc/PID/task/TID/fd/N; what is below is no other place."""


def build_args(config: ContainerConfig, image: ImageDefaults) -> list[str]:
    """The argument vector.

    `command` replaces ENTRYPOINT and, with it, the image's CMD; `args` replaces CMD.

    Raises InvalidArgumentError when nothing is left to run.
    """
    for field, words in (("command", config.command), ("args", config.args)):
        for index, word in enumerate(words):
            no_nul(word, f"{field}[{index}]")
    args = [*config.command, *config.args]
    if not config.command:
        args = [*image.entrypoint, *(config.args or image.cmd)]
    if not args:
        raise InvalidArgumentError(
            f"command: no command: neither the request nor the image {quoted(image.name)} names one; "
            "set command or args"
        )
    if not args[0]:
        field = "command" if config.command else "image ENTRYPOINT"
        if not config.command and not image.entrypoint:
            field = "args" if config.args else "image CMD"
        raise InvalidArgumentError(f"{field}: the first word is empty: there is nothing to run")
    for arg in args:
        no_nul(arg, "image ENTRYPOINT or CMD")
    return args


def build_env(
    config: ContainerConfig, image: ImageDefaults, user: ResolvedUser, *, hostname: str
) -> list[str]:
    """The environment as `NAME=value`: defaults, then the image's, then the request's, one entry per name.

    Values are bytes in CRI but a runtime-spec is JSON: a byte that is not UTF-8 becomes U+FFFD, which is what
    runc makes of it anyway, while crun would refuse the whole document. `undecodable_env` tells which.

    Raises InvalidArgumentError for a name that no process could have, a NUL, or a HOME with control characters
    (CVE-2022-4318: such a HOME forges lines in files made from it).
    """
    env = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if config.tty:
        env["TERM"] = "xterm"
    for entry in image.env:
        name, separator, value = entry.partition("=")
        # Whoever wrote the image could not have meant these; they must not keep the container from starting.
        if name and separator and "\0" not in entry:
            env[name] = value
    for index, pair in enumerate(config.envs):
        field = f"envs[{index}]"
        if not pair.key or "=" in pair.key or "\0" in pair.key:
            refuse(f"{field}.key", pair.key, "is not a name an environment variable can have")
        if b"\0" in pair.value:  # a value may be a secret: it is not repeated
            raise InvalidArgumentError(
                f"{field}.value: that of {quoted(pair.key)} contains a NUL byte"
            )
        env[pair.key] = pair.value.decode("utf-8", "replace")
    home = env.setdefault("HOME", user.home or "/")
    if has_control_characters(home):
        refuse(_source_of_home(config, image), home, "contains control characters")
    return [f"{name}={value}" for name, value in env.items()]


def _source_of_home(config: ContainerConfig, image: ImageDefaults) -> str:
    if any(pair.key == "HOME" for pair in config.envs):
        return "envs: HOME"
    if any(entry.startswith("HOME=") for entry in image.env):
        return "image ENV: HOME"
    return "image /etc/passwd: HOME"


def undecodable_env(config: ContainerConfig) -> list[str]:
    """Names of the requested variables whose value JSON cannot carry unchanged; worth a warning."""
    return [pair.key for pair in config.envs if not _is_utf8(pair.value)]


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def build_cwd(config: ContainerConfig, image: ImageDefaults) -> str:
    """The working directory: the request's, the image's, or the root; in its one spelling, which is looked at and used.

    Raises InvalidArgumentError for a relative path and for the magic links of /proc.
    """
    field = "working_dir" if config.working_dir else "image WORKDIR"
    cwd = absolute_path(config.working_dir or image.working_dir or "/", field)
    if leads_through_a_process(cwd):
        refuse(field, cwd, "leads through a descriptor of another process")
    return clean_container_path(cwd, field)


def leads_through_a_process(path: str) -> bool:
    """Whether an absolute path, or where it is before a `..` turns it back, is one of another process's in /proc."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
            if len(parts) <= _MAGIC_LINK_PARTS and _MAGIC_LINK.match(f"/{'/'.join(parts)}"):
                return True
    return False


def build_rlimits(ulimits: Mapping[str, Ulimit]) -> list[Spec]:
    """The spec's rlimits from the node's default ulimits."""
    infinity = 2**64 - 1
    return [
        {
            "type": f"RLIMIT_{name.upper()}",
            "soft": infinity if limit.soft == -1 else limit.soft,
            "hard": infinity if limit.hard == -1 else limit.hard,
        }
        for name, limit in ulimits.items()
    ]


def exec_base(process: Spec) -> Spec:
    """What is kept of a container's process for its execs: without the words of its command, which can be thousands."""
    return {**process, "args": []}


def build_exec_process(
    process: Mapping[str, Any],
    argv: Sequence[str],
    *,
    tty: bool,
    size: tuple[int, int] | None = None,
) -> Spec:
    """The process document of an exec: the container's own process with other arguments.

    User, capabilities, profiles, limits and environment are the container's, so an exec never has more rights
    than the container. `size` is the terminal's width and height, in characters. Raises InvalidArgumentError when
    `argv` is empty.
    """
    if not argv or not argv[0]:
        raise InvalidArgumentError("cmd: no command to execute")
    env = process["env"]
    if tty and not any(entry.startswith("TERM=") for entry in env):
        env = [*env, "TERM=xterm"]
    document: Spec = {
        **process,
        "args": [no_nul(arg, "cmd") for arg in argv],
        "env": env,
        "terminal": tty,
    }
    if tty and size is not None:
        width, height = size
        document["consoleSize"] = {"height": height, "width": width}
    return document
