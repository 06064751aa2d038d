"""Daemons with handlers whose pods have kernels of their own."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes import kata_runtime
from tests.harness import node
from tests.integration.shim.conftest import shim_handlers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon, Daemons

RUNSC, KATA = "runsc", "kata"


def runsc_handler() -> dict[str, object]:
    """gVisor's, without virtualisation: system calls are caught by ptrace."""
    return {
        "path": "runsc",
        "kind": "vm",
        "args": ["--platform=ptrace", "--network=host"],
    }


@pytest.fixture(scope="session")
def secure_daemon(daemons: Daemons, archives: list[Path]) -> Iterator[Daemon]:
    """The session's daemon with gVisor, warm."""
    daemon = daemons.create(settings={"stats": {"cache": "1s"}})
    try:
        daemon.write_settings({"runtime": {"handlers": {RUNSC: runsc_handler(), "kata": None}}})
        daemon.start()
        daemon.warm_up(archives)
        yield daemon
    finally:
        daemons.destroy(daemon)


@pytest.fixture
def secure_client(secure_daemon: Daemon) -> Iterator[Client]:
    """That daemon, called; pods that the test leaves are removed the ordinary way."""
    yield secure_daemon.client
    secure_daemon.client.remove_all_pods()


class KataConfig:
    """The stand-in's configuration file, changed while it is used."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.write()

    def write(self, *, times: float = 0.05, hang: str = "") -> None:
        """All that takes long takes `times` as long; a command `hang`s while it holds its sandbox's lock."""
        unfinished = self.file.with_suffix(".unfinished")
        unfinished.write_text(f"times={times}\nhang={hang}\n")
        unfinished.rename(self.file)


def kata_settings(config_file: Path) -> dict[str, object]:
    """A handler of the stand-in, which has to answer within few seconds."""
    return {
        "runtime": {
            "command_timeout": "3s",
            "handlers": {
                KATA: {
                    "path": kata_runtime.__file__,
                    "kind": "vm",
                    "args": ["--kata-config", str(config_file)],
                    "pod_annotations": [
                        "io.katacontainers.*",
                        "com.github.containers.virtcontainers.*",
                    ],
                }
            },
        }
    }


def secure_settings(daemon: Daemon) -> tuple[dict[str, object], list[str]]:
    """Handlers of the stand-in, quick, of runc's shim, and of runsc where that is installed; and their names."""
    config_file = daemon.tree / "kata.conf"
    KataConfig(config_file).write(times=0.02)
    settings: dict[str, Any] = kata_settings(config_file)
    settings["runtime"]["handlers"] |= shim_handlers()
    if shutil.which("runsc", path=node.search_path()) is not None:
        settings["runtime"]["handlers"][RUNSC] = runsc_handler()
    return settings, list(settings["runtime"]["handlers"])


@pytest.fixture(scope="session")
def shared_kata_daemon(daemons: Daemons, archives: list[Path]) -> Iterator[Daemon]:
    """A daemon with the stand-in for kata-runtime, which tests may kill and start."""
    daemon = daemons.create()
    try:
        daemon.write_settings(kata_settings(daemon.tree / "kata.conf"))
        daemon.start()
        daemon.warm_up(archives)
        yield daemon
    finally:
        daemons.destroy(daemon)


@pytest.fixture
def kata_daemon(shared_kata_daemon: Daemon) -> Iterator[Daemon]:
    """That daemon, running; see `kata_config`. Pods that the test leaves are removed the ordinary way."""
    config = KataConfig(shared_kata_daemon.tree / "kata.conf")
    yield shared_kata_daemon
    config.write()
    if shared_kata_daemon.pid is None:
        shared_kata_daemon.start()
    shared_kata_daemon.client.remove_all_pods()


@pytest.fixture
def kata_config(kata_daemon: Daemon) -> KataConfig:
    """How that behaves."""
    return KataConfig(kata_daemon.tree / "kata.conf")


@pytest.fixture
def kata_client(kata_daemon: Daemon) -> Client:
    """That daemon, called."""
    return kata_daemon.client
