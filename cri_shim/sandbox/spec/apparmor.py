"""The AppArmor profiles that pods can have now, and our own among them: loaded at start, and again if it vanished.

Rules: a default profile of another name is the operator's, to be loaded by the operator; the daemon does not start
without it. Ours may fail to load: the daemon starts all the same, and what it would confine is refused. Where the
kernel has AppArmor but the parser is missing, what asks for nothing runs unconfined, with a warning at start; what
asks for the default is refused.
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
    """The kernel's profiles, with the default one kept there."""

    def __init__(self, reaper: Reaper, default: str, file: Path, *, root: Path = Path("/")) -> None:
        """`file` is where our profile is written; `root` stands in for / in tests."""
        self._reaper = reaper
        self._default = default
        self._file = file
        self._root = root
        self._loading = asyncio.Lock()

    async def prepare(self) -> None:
        """Load our profile as this version has it. Raises ConfigError for another default that is not loaded."""
        loaded = loaded_profiles(self._root)
        if loaded is None:
            if enabled(self._root):
                log.warning(
                    "AppArmor is enabled, but out of reach: no profile is applied",
                    missing="securityfs",
                )
            return
        if self._default == UNCONFINED:
            return
        if self._default != DEFAULT_PROFILE:
            if self._default not in loaded:
                raise ConfigError(
                    f"security.apparmor_profile: {quoted(self._default)}: no profile of this name is loaded: load it "
                    f"with {PARSER}, or use {DEFAULT_PROFILE}, which cri-shim loads itself"
                )
        elif parser() is not None:
            try:
                await self._load()
            except CriShimError as error:
                log.error("no pod can be made until this is repaired", error=str(error))
        elif self._default not in loaded:
            log.warning(
                "AppArmor is enabled, but the default profile can't be loaded: containers that ask for no profile "
                "run unconfined, those that ask for RuntimeDefault are refused",
                missing=PARSER,
            )

    def promised(self) -> frozenset[str] | None:
        """The profiles that a pod can count on: those loaded, and our own where it can be loaded."""
        loaded = loaded_profiles(self._root)
        if loaded is None or not self._is_ours_to_load():
            return loaded
        return loaded | {self._default}

    async def current(self) -> frozenset[str] | None:
        """The profiles that are loaded, the default one anew if it vanished; None: no AppArmor.

        Raises CriShimError when it can't be loaded again.
        """
        loaded = loaded_profiles(self._root)
        if loaded is None or self._default in loaded or not self._is_ours_to_load():
            return loaded
        log.warning("the default AppArmor profile vanished: loading it again", name=self._default)
        await self._load()
        return loaded | {self._default}

    def _is_ours_to_load(self) -> bool:
        return self._default == DEFAULT_PROFILE and parser() is not None

    async def _load(self) -> None:
        async with self._loading:
            with host_step(f"AppArmor profile {self._default}: loading it"):
                await load_profile(self._reaper, self._default, default_profile_text(), self._file)
