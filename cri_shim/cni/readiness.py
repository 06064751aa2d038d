"""The readiness of the default network's plugins: the answer to STATUS, asked periodically and cached.

Rules:
- Callers that query the node's status get the cached answer at once. Only `follow` calls plugins.
- A new or changed network is asked immediately. Ready plugins are asked again after half a minute, others sooner, with
  growing pauses: a node that can't take pods should become ready as soon as possible.
- A missing answer counts as not ready, so that a plugin that hangs doesn't look healthy.

CNI spec 1.1 §2 "STATUS".
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from cri_shim.cni.network_verbs import LIMITED_CONNECTIVITY, ask_status, knows_network_verbs
from cri_shim.cni.watch import NOT_READY, CniStatus
from cri_shim.errors import CniPluginError
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.cni.conf import NetworkList
    from cri_shim.cni.invoke import PluginRunner

log = structlog.get_logger()

READY_INTERVAL_S = 30.0
FIRST_RETRY_S = 1.0
MAX_RETRY_S = 15.0


class Readiness:
    """The last STATUS of the default network. Use it on the event loop's thread."""

    def __init__(
        self, runner: PluginRunner, default_network: Callable[[], NetworkList | None]
    ) -> None:
        self._runner = runner
        self._default_network = default_network
        self._asking: NetworkList | None = None
        self._asked: NetworkList | None = None
        self._problem = ""
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Ask again now, since something changed."""
        self._woken.set()

    def judge(self, network: NetworkList) -> CniStatus | None:
        """Why the network is not ready; None if it is."""
        if not knows_network_verbs(network):
            return None
        if network != self._asked:
            if network != self._asking:
                self.wake()
            message = f"network {quoted(network.name)}: its plugins have not answered STATUS yet"
            return CniStatus(ready=False, reason=NOT_READY, message=message)
        if self._problem:
            return CniStatus(ready=False, reason=NOT_READY, message=self._problem)
        return None

    async def follow(self) -> None:
        """Ask periodically, until cancelled."""
        retry_s = FIRST_RETRY_S
        while True:
            self._woken.clear()
            await self._ask()
            if self._problem:
                pause_s, retry_s = retry_s, min(retry_s * 2, MAX_RETRY_S)
            else:
                pause_s, retry_s = READY_INTERVAL_S, FIRST_RETRY_S
            try:
                async with asyncio.timeout(pause_s):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def _ask(self) -> None:
        network = self._asking = self._default_network()
        problem = ""
        if network is not None and knows_network_verbs(network):
            try:
                await ask_status(self._runner, network)
            except CniPluginError as error:
                problem = f"network {quoted(network.name)}: {error}"
                if error.code == LIMITED_CONNECTIVITY:
                    problem += "; pods that run may have limited connectivity"
            # A bug must not end this task: the node would keep its last answer for ever.
            except Exception:
                log.exception("cni STATUS failed unexpectedly", network=network.name)
                problem = f"network {quoted(network.name)}: STATUS failed unexpectedly; see the daemon's log"
        if problem != self._problem:
            log.warning("pod network not ready", problem=problem) if problem else log.info(
                "pod network ready again"
            )
        self._asked, self._problem = network, problem
