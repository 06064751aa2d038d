"""Lists the loaded AppArmor profiles, and loads the project's default profile at start and when it has vanished.

Rules:
- A configured default profile of another name must be loaded by the operator. The daemon does not start without it.
- If loading our own profile fails, the daemon starts, and refuses containers that the profile would confine.
- If the kernel has AppArmor but the parser is missing, containers that request no profile run unconfined, with a
  warning at start. Those that request the default are refused.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cri_shim.errors import ConfigError, CriShimError, host_step
from cri_shim.host.apparmor import PARSER, enabled, load_profile, loaded_profiles, parser
from cri_shim.oci.spec.apparmor import DEFAULT_PROFILE, UNCONFINED, default_profile_text
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from cri_shim.host.process import Reaper

log = structlog.get_logger()


class AppArmor:
    """The kernel's profiles. Keeps the default profile loaded."""

    def __init__(self, reaper: Reaper, default: str, file: Path, *, root: Path = Path("/")) -> None:
        """Our profile is written to `file`. `root` replaces / in tests."""
        self._reaper = reaper
        self._default = default
        self._file = file
        self._root = root
        self._loading = asyncio.Lock()

    async def prepare(self) -> None:
        """Load this version of our profile. Raises ConfigError if a configured other default is not loaded."""
        loaded = loaded_profiles(self._root)
        if loaded is None:
            if enabled(self._root):
                log.warning(
                    "AppArmor is enabled, but its files are not visible: no profile is applied",
                    missing="securityfs",
                )
            return
        if self._default == UNCONFINED:
            return
        if self._default != DEFAULT_PROFILE:
            if self._default not in loaded:
                raise ConfigError(
                    f"security.apparmor_profile: {quoted(self._default)}: the profile is not loaded: load it with "
                    f"{PARSER}, or use {DEFAULT_PROFILE}, which cri-shim loads itself"
                )
        elif parser() is not None:
            try:
                await self._load()
            except CriShimError as error:
                log.error(
                    "cannot load the default AppArmor profile; no pod can be created until it is",
                    error=str(error),
                )
        elif self._default not in loaded:
            log.warning(
                "AppArmor is enabled, but the default profile cannot be loaded: containers that request no profile "
                "run unconfined, and those that request RuntimeDefault are refused",
                missing=PARSER,
            )

    def promised(self) -> frozenset[str] | None:
        """The loaded profiles, and our own if it can be loaded. None without AppArmor. Does not load anything."""
        loaded = loaded_profiles(self._root)
        if loaded is None or not self._is_ours_to_load():
            return loaded
        return loaded | {self._default}

    async def current(self) -> frozenset[str] | None:
        """The loaded profiles, or None without AppArmor. Loads our default profile again if it has vanished.

        Raises CriShimError if that fails.
        """
        loaded = loaded_profiles(self._root)
        if loaded is None or self._default in loaded or not self._is_ours_to_load():
            return loaded
        log.warning(
            "the default AppArmor profile is not loaded any more; loading it again",
            name=self._default,
        )
        await self._load()
        return loaded | {self._default}

    def _is_ours_to_load(self) -> bool:
        return self._default == DEFAULT_PROFILE and parser() is not None

    async def _load(self) -> None:
        async with self._loading:
            with host_step(f"loading AppArmor profile {self._default}"):
                await load_profile(self._reaper, self._default, default_profile_text(), self._file)
