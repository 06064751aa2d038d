"""One call of one CNI plugin.

Rules:
- The executable is found by its bare name in the configured directories, never through PATH and never as a path.
- A plugin gets its parameters, CNI_PATH, and a PATH to find iptables and the like. It gets nothing else of our
  environment, which may hold secrets.
- A call has a deadline, and both its outputs are bounded. The message of a failure is the plugin's own: the error
  document on stdout, or else the tail of stderr. It is untrusted text, so it is made printable and cut.
- Plugins are not built to be killed: one that dies between two steps can leave a bridge without an address, which no
  later ADD can use. So a cancelled call waits a while for the plugin to exit. Only after that, and at the deadline, it
  is killed.
- Every failure is a CniPluginError. This module knows nothing of chains, caches and order.

CNI spec 1.1 §2 "Parameters", §5 "Error".
"""

from __future__ import annotations

import asyncio
import os
import stat
import time
from enum import StrEnum
from typing import TYPE_CHECKING

import structlog

from cri_shim.background import settled
from cri_shim.cni.result import parse_failure
from cri_shim.errors import CniPluginError, CommandError, DeadlineError
from cri_shim.operations import step

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from pathlib import Path

    from cri_shim.cni.attachment import Attachment
    from cri_shim.host.process import Completed, Reaper

log = structlog.get_logger()

MAX_ANSWER_BYTES = 1 << 20
CANCEL_GRACE_S = 5.0
"""How long the plugin of a cancelled call may run on."""

_MAX_WORDS = 2048  # characters of a plugin's own text in an error
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Verb(StrEnum):
    """CNI_COMMAND."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    STATUS = "STATUS"
    GC = "GC"
    VERSION = "VERSION"


class PluginRunner:
    """Finds and calls plugins. `timeout_s` bounds one call."""

    def __init__(
        self,
        reaper: Reaper,
        plugin_dirs: Sequence[Path],
        *,
        timeout_s: float,
        cancel_grace_s: float = CANCEL_GRACE_S,
    ) -> None:
        self.plugin_dirs = tuple(plugin_dirs)
        self.timeout_s = timeout_s
        self._reaper = reaper
        self._cancel_grace_s = cancel_grace_s

    def find(self, plugin: str) -> Path | None:
        """The executable of this type, in the first directory that has one."""
        if "/" in plugin or plugin in ("", ".", ".."):
            return None
        for directory in self.plugin_dirs:
            file = directory / plugin
            try:
                is_file = stat.S_ISREG(os.stat(file).st_mode)
            except OSError:
                continue
            if is_file and os.access(file, os.X_OK):
                return file
        return None

    def where(self) -> str:
        """The searched directories, for messages."""
        return " or ".join(map(str, self.plugin_dirs)) or "any directory (cni.plugin_dirs is empty)"

    async def run(
        self,
        verb: Verb,
        plugin: str,
        config: bytes,
        attachment: Attachment | None = None,
        *,
        netns: str = "",
        timeout_s: float | None = None,
    ) -> bytes:
        """Call `plugin` and return its stdout. `netns` is empty when the namespace is gone.

        Verbs for a whole network have no attachment. `timeout_s` may shorten the usual deadline.
        Raises CniPluginError. A cancellation is raised once the plugin has exited or was killed.
        """
        file = self.find(plugin)
        if file is None:
            raise CniPluginError(
                plugin, verb, f"no such executable in {self.where()}; install the plugin there"
            )
        timeout_s = min(self.timeout_s, timeout_s or self.timeout_s)
        try:
            with step(f"cni {verb} {plugin}"):
                completed = await self._to_its_end(
                    self._reaper.run(
                        [str(file)],
                        timeout_s=timeout_s,
                        stdin=config,
                        env=self._environment(verb, attachment, netns),
                        max_stdout_bytes=MAX_ANSWER_BYTES,
                    )
                )
        except DeadlineError as error:
            raise CniPluginError(
                plugin, verb, f"no answer within {timeout_s:g} s; it was killed"
            ) from error
        except CommandError as error:
            raise CniPluginError(
                plugin, verb, f"printed more than {MAX_ANSWER_BYTES} bytes; it was killed"
            ) from error
        except OSError as error:
            raise CniPluginError(
                plugin, verb, f"{file} can't be executed: {error.strerror}"
            ) from error
        log.debug(
            "cni plugin called",
            plugin=plugin,
            verb=str(verb),
            attachment=str(attachment or ""),
            ending=completed.ending.describe(),
            seconds=round(completed.seconds, 4),
            stderr=_printable(completed.stderr_tail),
        )
        if not completed.ok:
            raise _failure(plugin, verb, completed)
        return completed.stdout

    async def _to_its_end(self, call: Coroutine[object, object, Completed]) -> Completed:
        """Await `call`. When cancelled, let it run for the grace period, then cancel it, and only then raise."""
        task = asyncio.ensure_future(call)  # noqa: TID251 - owned here: never left before its end
        cancelled: asyncio.CancelledError | None = None
        give_up_at = 0.0
        while not task.done():
            left = give_up_at - time.monotonic()
            if cancelled is not None and left <= 0:
                task.cancel()
            try:
                await settled(task, left if left > 0 else None)
            except asyncio.CancelledError as error:
                if cancelled is None:
                    cancelled, give_up_at = error, time.monotonic() + self._cancel_grace_s
        if cancelled is not None:
            if not task.cancelled():
                task.exception()  # mark it as retrieved: the caller gets the cancellation instead
            raise cancelled
        return task.result()

    def _environment(self, verb: Verb, attachment: Attachment | None, netns: str) -> dict[str, str]:
        environment = {
            "PATH": os.environ.get("PATH", _DEFAULT_PATH),
            "CNI_COMMAND": verb,
            "CNI_PATH": os.pathsep.join(map(str, self.plugin_dirs)),
        }
        if attachment is not None:
            environment |= {
                "CNI_CONTAINERID": attachment.container_id,
                "CNI_NETNS": netns,
                "CNI_IFNAME": attachment.ifname,
                "CNI_ARGS": attachment.cni_args,
            }
        return environment


def _failure(plugin: str, verb: Verb, completed: Completed) -> CniPluginError:
    said = parse_failure(completed.stdout)
    if said is not None:
        words = ": ".join(_printable(text) for text in (said.msg, said.details) if text)
        return CniPluginError(plugin, verb, words or "failed without a message", code=said.code)
    words = _printable(completed.stderr_tail) or _printable(
        completed.stdout[:_MAX_WORDS].decode(errors="replace")
    )
    return CniPluginError(
        plugin, verb, f"{completed.ending.describe()}: {words or 'it printed nothing'}"
    )


def _printable(text: str) -> str:
    """Untrusted text as one bounded line. Long text keeps its end, where the cause usually is."""
    line = " ".join(text.split())
    line = "".join(character if character.isprintable() else "?" for character in line)
    return line if len(line) <= _MAX_WORDS else "…" + line[-_MAX_WORDS:]
