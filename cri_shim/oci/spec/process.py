"""The process: arguments, environment, working directory, rlimits, and the processes of execs.

Rules: the request takes precedence over the image, and the image over our defaults. Nothing is guessed: a missing
command is an error, never a shell. `command` and `args` relate to ENTRYPOINT and CMD as in Kubernetes.
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

# CVE-2024-21626: through these links, a host descriptor that leaked into the runtime's first process becomes the
# container's working directory. No honest image or pod uses them.
_MAGIC_LINK = re.compile(r"/(proc/(self|thread-self|\d+)(/task/\d+)?|dev)/(fd|cwd|root)(/|$)")

_MAGIC_LINK_PARTS = 6
"""The components of /proc/PID/task/TID/fd/N. A longer path is matched by these."""


def build_args(config: ContainerConfig, image: ImageDefaults) -> list[str]:
    """The argument vector.

    `command` replaces ENTRYPOINT and, with it, the image's CMD; `args` replaces CMD.

    Raises InvalidArgumentError when there is nothing to run.
    """
    for field, words in (("command", config.command), ("args", config.args)):
        for index, word in enumerate(words):
            no_nul(word, f"{field}[{index}]")
    args = [*config.command, *config.args]
    if not config.command:
        args = [*image.entrypoint, *(config.args or image.cmd)]
    if not args:
        raise InvalidArgumentError(
            f"command: missing: neither the request nor the image {quoted(image.name)} names a command; "
            "set command or args"
        )
    if not args[0]:
        field = "command" if config.command else "image ENTRYPOINT"
        if not config.command and not image.entrypoint:
            field = "args" if config.args else "image CMD"
        raise InvalidArgumentError(f"{field}: the first word is empty, so there is nothing to run")
    for arg in args:
        no_nul(arg, "image ENTRYPOINT or CMD")
    return args


def build_env(
    config: ContainerConfig, image: ImageDefaults, user: ResolvedUser, *, hostname: str
) -> list[str]:
    """The environment as `NAME=value`: defaults, then the image's, then the request's, one entry per name.

    CRI's values are bytes, but a runtime-spec is JSON. Bytes that are not UTF-8 become U+FFFD: runc would do the same,
    while crun would reject the whole document. `undecodable_env` lists such variables.

    Raises InvalidArgumentError for an impossible name, a NUL, or a HOME with control characters (CVE-2022-4318: such a
    HOME forges lines in files that are generated from it).
    """
    env = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if config.tty:
        env["TERM"] = "xterm"
    for entry in image.env:
        name, separator, value = entry.partition("=")
        # An invalid entry of the image must not keep the container from starting.
        if name and separator and "\0" not in entry:
            env[name] = value
    for index, pair in enumerate(config.envs):
        field = f"envs[{index}]"
        if not pair.key or "=" in pair.key or "\0" in pair.key:
            refuse(f"{field}.key", pair.key, "is not a valid name of an environment variable")
        if b"\0" in pair.value:  # the value may be a secret, so the error does not quote it
            raise InvalidArgumentError(
                f"{field}.value: the value of {quoted(pair.key)} contains a NUL byte"
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
    """The requested variables whose value JSON can't carry unchanged, for a warning."""
    return [pair.key for pair in config.envs if not _is_utf8(pair.value)]


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def build_cwd(config: ContainerConfig, image: ImageDefaults) -> str:
    """The working directory, normalised: the request's, the image's, or the root.

    Raises InvalidArgumentError for a relative path and for the magic links of /proc.
    """
    field = "working_dir" if config.working_dir else "image WORKDIR"
    cwd = absolute_path(config.working_dir or image.working_dir or "/", field)
    if leads_through_a_process(cwd):
        refuse(field, cwd, "leads through a process's descriptors in /proc or /dev/fd")
    return clean_container_path(cwd, field)


def leads_through_a_process(path: str) -> bool:
    """Whether an absolute path leads through a process's links in /proc, even if a later `..` leads back out."""
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
    """The part of a container's process that its execs need: without its arguments, which can be many."""
    return {**process, "args": []}


def build_exec_process(
    process: Mapping[str, Any],
    argv: Sequence[str],
    *,
    tty: bool,
    size: tuple[int, int] | None = None,
) -> Spec:
    """The process document of an exec: the container's process with other arguments.

    User, capabilities, profiles, limits and environment are the container's, so an exec never has more privileges than
    the container. `size` is the terminal's width and height, in characters. Raises InvalidArgumentError for an empty
    `argv`.
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
