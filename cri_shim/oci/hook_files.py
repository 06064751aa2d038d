"""The OCI hooks of this node: the files of the hooks directories, and the one list for every container.

Rules:
- Files count by name, over all directories; of two with one name that of the later directory counts, also when it
  can't be used: then neither does the other.
- A hook runs as root. Its program must belong to root, be executable, and be writable by nobody else, at the moment a
  container is made: one that isn't is an error of that container, since leaving a hook out could leave a rule out.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from cri_shim.errors import ConfigError, UnavailableError
from cri_shim.host.dropins import DropIns, distrust, read_owned
from cri_shim.oci.spec.hooks import (
    IN_CONTAINER,
    ConditionalHook,
    node_programs,
    parse_hook_file,
    parse_hook_list,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from cri_shim.oci.spec.inputs import Spec

MAX_FILE_BYTES = 1 << 20
MAX_LIST_BYTES = 10 << 20


class HookFiles:
    """Which hooks there are."""

    def __init__(self, directories: Sequence[Path], hook_list: Path | None = None) -> None:
        """Raises ConfigError for a `hook_list` that can't be used, down to its programs."""
        self.files: DropIns[ConditionalHook] = DropIns(
            "OCI hooks",
            directories,
            (".json",),
            lambda path, data: parse_hook_file(data, str(path)),
            max_bytes=MAX_FILE_BYTES,
        )
        self._always: tuple[ConditionalHook, ...] = ()
        if hook_list is not None:
            self._always = _read_list(hook_list)

    def current(self) -> tuple[ConditionalHook, ...]:
        """Every hook that can be used, in the order in which they run. Blocks while changed files are read."""
        by_name = {file.path.name: file.value for file in self.files.current()}
        return (
            *self._always,
            *(hook for _, hook in sorted(by_name.items()) if hook is not None),
        )


def check_programs(spec: Spec) -> None:
    """Refuse a spec with a hook that isn't surely root's own. Raises UnavailableError."""
    for path, problem in _untrusted(node_programs(spec)):
        raise UnavailableError(f"OCI hook {path}: {problem}")


def untrusted_programs(hooks: Iterable[ConditionalHook]) -> list[str]:
    """What is wrong with the programs of these hooks, one sentence each."""
    programs = (hook.hook.path for hook in hooks if set(hook.stages) != {IN_CONTAINER})
    return [f"{path}: {problem}" for path, problem in _untrusted(programs)]


def _read_list(path: Path) -> tuple[ConditionalHook, ...]:
    try:
        hooks = parse_hook_list(read_owned(path, MAX_LIST_BYTES), str(path))
    except OSError as error:
        raise ConfigError(f"security.hook_spec: {path}: {error.strerror}") from error
    for problem in untrusted_programs(hooks):
        raise ConfigError(f"security.hook_spec: {path}: {problem}")
    return hooks


def _untrusted(programs: Iterable[str]) -> Iterable[tuple[str, str]]:
    """The programs that may not run, and why."""
    for path in dict.fromkeys(programs):
        try:
            status = os.stat(path)
        except OSError as error:
            yield path, f"{error.strerror}: the program is missing"
            continue
        if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
            yield path, "is not an executable file"
        elif why := distrust(status):
            yield path, why
