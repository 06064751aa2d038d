"""The OCI hooks of this node: the files of the hooks directories, and one list that applies to every container.

Rules:
- Files are identified by name over all directories. Of two files with one name, that of the later directory counts,
  even if it can't be used; the other is ignored then as well.
- A hook runs as root. When a container is created, the hook's program must belong to root, be executable and be
  writable by nobody else. Otherwise the creation fails: to leave a hook out could leave out a rule it enforces.
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
    """Follows the hook files, and gives the hooks in force."""

    def __init__(self, directories: Sequence[Path], hook_list: Path | None = None) -> None:
        """Raises ConfigError for a `hook_list` that can't be used, including its programs."""
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
        """Every usable hook, in the order in which hooks run. Blocks while it reads changed files."""
        by_name = {file.path.name: file.value for file in self.files.current()}
        return (
            *self._always,
            *(hook for _, hook in sorted(by_name.items()) if hook is not None),
        )


def check_programs(spec: Spec) -> None:
    """Check the programs of a spec's hooks. Raises UnavailableError for one that others than root could change."""
    for path, problem in _untrusted(node_programs(spec)):
        raise UnavailableError(f"OCI hook {path}: {problem}")


def untrusted_programs(hooks: Iterable[ConditionalHook]) -> list[str]:
    """The problems of these hooks' programs, one sentence each. Hooks that run in the container are skipped."""
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
    """The programs that must not run, with the reason."""
    for path in dict.fromkeys(programs):
        try:
            status = os.stat(path)
        except OSError as error:
            yield path, f"the program is missing: {error.strerror}"
            continue
        if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
            yield path, "is not an executable file"
        elif why := distrust(status):
            yield path, why
