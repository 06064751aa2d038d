"""The configured runtime handlers: probes which work on this node, and builds their runtimes.

Rules:
- Status announces only handlers that were probed: the program exists, answers, and supports this node. Others are
  logged, and reported by `cri-shim check`. They are probed again at the next start or reload.
- A pod may request a handler that is not announced. It is tried, and its error names the reason.
- A reload replaces all handlers.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from cri_shim.config.model import HandlerKind
from cri_shim.errors import CriShimError
from cri_shim.host.mounts import can_map_ids, has_mount_setattr
from cri_shim.host.userns import new_user_namespace
from cri_shim.kernel_call import in_time
from cri_shim.oci.cli import CliRuntime
from cri_shim.oci.refusals import crun_problem
from cri_shim.oci.runtime import HandlerSettings, RuntimeFeatures, Runtimes
from cri_shim.oci.shim.runtime import ShimRuntime
from cri_shim.oci.spec.inputs import HandlerFacts
from cri_shim.oci.vm import VmRuntime

if TYPE_CHECKING:
    from cri_shim.config.model import RuntimeSettings
    from cri_shim.host.cgroups.layout import Layout
    from cri_shim.host.process import Reaper
    from cri_shim.oci.runtime import Runtime, RuntimeVersion
    from cri_shim.oci.shim.shims import Shims
    from cri_shim.paths import Paths

log = structlog.get_logger()
_TRIED_MAP = "0 65536 65536"


class Handlers:
    """The runtimes and their features."""

    def __init__(
        self,
        settings: RuntimeSettings,
        *,
        paths: Paths,
        reaper: Reaper,
        shims: Shims,
        systemd: bool,
        layout: Layout | None = None,
    ) -> None:
        """`layout` is that of the node's cgroups, with which some runtimes do not work."""
        self._paths = paths
        self._reaper = reaper
        self._shims = shims
        self._systemd = systemd
        self._layout = layout
        self._usable: set[str] = set()
        self._features: dict[str, RuntimeFeatures | None] = {}
        self._maps_ids = False
        self._use(settings)

    def close(self) -> None:
        """Let go of what runs on without the daemon."""
        self._shims.close()

    async def clear_of_shim(self, handler: str, object_id: str) -> None:
        """Take away what a shim left of an object whose handler is gone from the settings; if none did, nothing.

        Raises OSError, DeadlineError.
        """
        await self._shims.clear(self._paths.runtime_root(handler), object_id)

    def replace(self, settings: RuntimeSettings) -> None:
        """Use new settings from now on. Raises UnknownRuntimeHandlerError if they lack the default handler."""
        self._use(settings)

    def _use(self, settings: RuntimeSettings) -> None:
        self.runtimes = self._build(settings)
        self._by_name = {str(name): handler for name, handler in settings.handlers.items()}

    def get(self, handler: str) -> Runtime:
        """The runtime of a handler. Raises UnknownRuntimeHandlerError."""
        return self.runtimes.get(handler)

    def facts(self, handler: str) -> HandlerFacts:
        """The properties of a handler that the spec builders need. Raises UnknownRuntimeHandlerError."""
        name = self.get(handler).settings.name
        settings = self._by_name[name]
        features = self._features.get(name)
        return HandlerFacts(
            name=name,
            kind=HandlerKind(settings.kind),
            pod_annotations=tuple(settings.pod_annotations),
            container_annotations=tuple(settings.container_annotations),
            unsafe_annotations=tuple(
                (features and features.potentially_unsafe_config_annotations) or ()
            ),
            privileged_without_host_devices=settings.privileged_without_host_devices,
            device_ownership_from_security_context=settings.device_ownership_from_security_context,
            recursive_read_only_mounts=features is not None
            and features.recursive_read_only_mounts
            and has_mount_setattr(),
            user_namespaces=features is not None
            and features.user_namespaces
            and self._maps_ids
            and settings.kind == "oci",
            max_user_id=RuntimeFeatures().max_user_id if features is None else features.max_user_id,
            reads_user_mappings=features is not None and features.reads_user_mappings,
        )

    def usable(self) -> list[str]:
        """The handlers that work, as last probed. The default one comes first, as "" and by its name."""
        default = self.get("").settings.name
        names = sorted(
            self._usable & self._by_name.keys(), key=lambda name: (name != default, name)
        )
        return ["", *names] if default in names else names

    async def discover(self) -> None:
        """Probe every handler: whether it works here, and its features. Failures are logged."""
        # In parallel, so that the timeouts of several hanging runtimes do not add up.
        await asyncio.gather(*map(self._ask, self.runtimes))
        if any(found is not None and found.user_namespaces for found in self._features.values()):
            self._maps_ids = await self._can_map_ids()

    async def _ask(self, runtime: Runtime) -> None:
        name = runtime.settings.name
        self._features[name] = None
        try:
            problem = self._refusal(runtime, await runtime.version())
            if not problem:
                self._features[name] = await runtime.features()
        except CriShimError as error:
            problem = str(error)
        if problem:
            self._usable.discard(name)
            log.warning("runtime handler does not work, not announced", handler=name, error=problem)
        else:
            self._usable.add(name)

    def _refusal(self, runtime: Runtime, version: RuntimeVersion) -> str:
        refusal = crun_problem(self._layout) if version.name == "crun" else None
        return "" if refusal is None else f"crun {refusal[0]}: {refusal[1]}"

    async def _can_map_ids(self) -> bool:
        """Try whether root file systems can be ID-mapped to a user namespace."""
        try:
            async with new_user_namespace(
                self._reaper, uid_map=_TRIED_MAP, gid_map=_TRIED_MAP, with_network=False
            ) as users:
                return await in_time(
                    "trying ID-mapped mounts", can_map_ids, self._paths.layers_dir, users.fd
                )
        except CriShimError as error:
            log.warning("cannot create user namespaces on this node", error=str(error))
            return False

    def _build(self, settings: RuntimeSettings) -> Runtimes:
        return Runtimes(
            (
                self._runtime(
                    HandlerSettings(
                        name=str(name),
                        path=str(handler.path),
                        kind=handler.kind,
                        args=tuple(handler.args),
                        root_dir=self._paths.runtime_root(str(name)),
                        env={str(key): value for key, value in handler.env.items()},
                        config_path=handler.config_path,
                        type_url=handler.type_url,
                    ),
                    float(settings.command_timeout_s),
                )
                for name, handler in settings.handlers.items()
            ),
            default_handler=str(settings.default_handler),
        )

    def _runtime(self, settings: HandlerSettings, timeout_s: float) -> Runtime:
        if settings.kind is HandlerKind.SHIM:
            return ShimRuntime(
                settings,
                self._reaper,
                self._shims,
                timeout_s=timeout_s,
                systemd_cgroup=self._systemd,
            )
        kind = VmRuntime if settings.kind is HandlerKind.VM else CliRuntime
        return kind(settings, self._reaper, timeout_s=timeout_s, systemd_cgroup=self._systemd)
