"""Runtime handlers: found by name, asked what they support, replaced as a whole."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import pytest
from structlog.testing import capture_logs

from cri_shim.cli.checks.cgroups import read_layout
from cri_shim.config.model import HandlerKind, HandlerSettings, RuntimeSettings
from cri_shim.config.values import AnnotationPattern, EnvName, Executable, HandlerName
from cri_shim.daemon import handlers as handlers_module
from cri_shim.daemon.handlers import Handlers
from cri_shim.errors import CommandError, UnknownRuntimeHandlerError
from cri_shim.host.userns import UserNamespace
from cri_shim.paths import Paths
from tests.fakes.task_shim import shims_of
from tests.unit.cli.checks.trees import hybrid

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from cri_shim.config import Config
    from cri_shim.host.process import Reaper

pytestmark = pytest.mark.asyncio


@pytest.fixture
def handlers(config: Config, reaper: Reaper) -> Handlers:
    return Handlers(
        config.runtime,
        paths=Paths(config.root, config.state),
        reaper=reaper,
        shims=shims_of(Paths(config.root, config.state), reaper),
        systemd=False,
    )


async def test_a_handler_is_found_by_its_name_and_the_default_by_none(handlers: Handlers) -> None:
    assert handlers.get("").settings.name == "rro"
    assert handlers.get("gone").settings.path == "/nonexistent/runtime"
    with pytest.raises(UnknownRuntimeHandlerError, match="gone, rro"):
        handlers.get("other")


async def test_each_handler_has_a_root_of_its_own(handlers: Handlers, tmp_path: Path) -> None:
    assert handlers.get("gone").settings.root_dir == tmp_path / "state/runtime/gone"


async def test_what_a_handler_supports_is_what_it_says(handlers: Handlers) -> None:
    assert not handlers.facts("rro").recursive_read_only_mounts
    await handlers.discover()
    assert handlers.facts("rro").recursive_read_only_mounts
    assert handlers.facts("").name == "rro"


@pytest.mark.parametrize("file_system_maps", [True, False])
async def test_user_namespaces_need_the_runtime_and_the_layers_file_system(
    config: Config,
    reaper: Reaper,
    install_runtime: Callable[[str], Executable],
    monkeypatch: pytest.MonkeyPatch,
    *,
    file_system_maps: bool,
) -> None:
    tried: list[tuple[Path, int]] = []

    def can_map_ids(directory: Path, userns_fd: int) -> bool:
        tried.append((directory, userns_fd))
        return file_system_maps

    @asynccontextmanager
    async def new_user_namespace(
        reaper: Reaper, *, uid_map: str, gid_map: str, with_network: bool
    ) -> AsyncIterator[UserNamespace]:
        yield UserNamespace(7, None)

    monkeypatch.setattr(handlers_module, "can_map_ids", can_map_ids)
    monkeypatch.setattr(handlers_module, "new_user_namespace", new_user_namespace)
    settings = RuntimeSettings(
        default_handler=HandlerName("rro"),
        handlers={
            HandlerName(name): HandlerSettings(path=install_runtime(name))
            for name in ("idmap-runc", "rro")
        },
    )
    paths = Paths(config.root, config.state)
    handlers = Handlers(
        settings,
        paths=paths,
        reaper=reaper,
        shims=shims_of(Paths(config.root, config.state), reaper),
        systemd=False,
    )
    assert not handlers.facts("idmap-runc").user_namespaces
    await handlers.discover()
    facts = handlers.facts("idmap-runc")
    assert facts.user_namespaces is file_system_maps
    assert facts.reads_user_mappings
    assert not handlers.facts("rro").user_namespaces
    assert tried == [(paths.layers_dir, 7)]


async def test_a_node_without_user_namespaces_offers_none(
    config: Config,
    reaper: Reaper,
    install_runtime: Callable[[str], Executable],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def new_user_namespace(reaper: Reaper, **_: object) -> None:
        raise CommandError("making a user namespace", ["unshare"], "exited", "No space left")

    monkeypatch.setattr(handlers_module, "new_user_namespace", new_user_namespace)
    settings = RuntimeSettings(
        default_handler=HandlerName("idmap"),
        handlers={HandlerName("idmap"): HandlerSettings(path=install_runtime("idmap"))},
    )
    handlers = Handlers(
        settings,
        paths=Paths(config.root, config.state),
        reaper=reaper,
        shims=shims_of(Paths(config.root, config.state), reaper),
        systemd=False,
    )
    await handlers.discover()
    assert not handlers.facts("idmap").user_namespaces


async def test_a_handler_that_cannot_be_run_stops_no_other(handlers: Handlers) -> None:
    await handlers.discover()
    assert not handlers.facts("gone").recursive_read_only_mounts


async def test_what_can_not_be_used_is_not_announced_and_said_once(
    config: Config,
    reaper: Reaper,
    install_runtime: Callable[[str], Executable],
    tmp_path: Path,
) -> None:
    named = {name: HandlerSettings(path=install_runtime(name)) for name in ("crun", "b", "a")}
    named["vm"] = HandlerSettings(path=install_runtime("vm"), kind=HandlerKind.VM)
    named["shim"] = HandlerSettings(path=install_runtime("shim"), kind=HandlerKind.SHIM)
    named["gone"] = HandlerSettings(path=Executable("/nonexistent/runtime"))
    settings = RuntimeSettings(
        default_handler=HandlerName("b"),
        handlers={HandlerName(name): each for name, each in named.items()},
    )
    handlers = Handlers(
        settings,
        paths=Paths(config.root, config.state),
        reaper=reaper,
        shims=shims_of(Paths(config.root, config.state), reaper),
        systemd=False,
        layout=read_layout(hybrid(tmp_path, on_v2="hugetlb")),
    )
    with capture_logs() as logs:
        await handlers.discover()
    assert handlers.usable() == ["", "b", "a", "vm"]
    said = {line["handler"]: line["error"] for line in logs}
    assert said.keys() == {"crun", "shim", "gone"}
    assert "refuses this hybrid cgroup layout" in said["crun"]
    assert "asking for its version" in said["shim"]
    assert "was not found" in said["gone"]


async def test_without_its_default_a_node_announces_the_others(
    config: Config, reaper: Reaper, install_runtime: Callable[[str], Executable]
) -> None:
    settings = RuntimeSettings(
        default_handler=HandlerName("gone"),
        handlers={
            HandlerName("gone"): HandlerSettings(path=Executable("/nonexistent/runtime")),
            HandlerName("rro"): HandlerSettings(path=install_runtime("rro")),
        },
    )
    paths = Paths(config.root, config.state)
    handlers = Handlers(
        settings,
        paths=paths,
        reaper=reaper,
        shims=shims_of(Paths(config.root, config.state), reaper),
        systemd=False,
    )
    await handlers.discover()
    assert handlers.usable() == ["rro"]
    # Installed meanwhile, and looked at again as a reload does.
    handlers.replace(
        RuntimeSettings(
            default_handler=HandlerName("gone"),
            handlers={HandlerName("gone"): HandlerSettings(path=install_runtime("gone"))},
        )
    )
    await handlers.discover()
    assert handlers.usable() == ["", "gone"]


async def test_a_runtime_without_features_is_taken_to_have_none(
    config: Config, reaper: Reaper, install_runtime: Callable[[str], Executable]
) -> None:
    settings = RuntimeSettings(
        default_handler=HandlerName("old"),
        handlers={HandlerName("old"): HandlerSettings(path=install_runtime("old"))},
    )
    handlers = Handlers(
        settings,
        paths=Paths(config.root, config.state),
        reaper=reaper,
        shims=shims_of(Paths(config.root, config.state), reaper),
        systemd=False,
    )
    await handlers.discover()
    assert not handlers.facts("old").recursive_read_only_mounts


async def test_everything_that_is_configured_reaches_runtime_and_specs(
    handlers: Handlers,
) -> None:
    name = HandlerName("kata")
    handlers.replace(
        RuntimeSettings(
            default_handler=name,
            handlers={
                name: HandlerSettings(
                    path=Executable("/usr/bin/kata-runtime"),
                    kind=HandlerKind.VM,
                    args=("--debug",),
                    env={EnvName("A"): "1"},
                    pod_annotations=(AnnotationPattern("io.katacontainers.*"),),
                    privileged_without_host_devices=True,
                )
            },
        )
    )
    settings = handlers.get("").settings
    assert settings.kind is HandlerKind.VM
    assert settings.args == ("--debug",)
    assert settings.env == {"A": "1"}
    facts = handlers.facts("kata")
    assert facts.kind == "vm"
    assert facts.pod_annotations == ("io.katacontainers.*",)
    assert facts.privileged_without_host_devices


async def test_what_was_replaced_is_gone(handlers: Handlers) -> None:
    before = handlers.get("rro")
    handlers.replace(
        RuntimeSettings(
            default_handler=HandlerName("new"),
            handlers={HandlerName("new"): HandlerSettings(path=Executable("/new"))},
        )
    )
    assert handlers.get("").settings.name == "new"
    with pytest.raises(UnknownRuntimeHandlerError):
        handlers.get("rro")
    assert before.settings.name == "rro"  # who holds it may finish


async def test_a_default_that_is_not_there_changes_nothing(
    handlers: Handlers, config: Config
) -> None:
    wrong = msgspec.structs.replace(config.runtime, default_handler=HandlerName("missing"))
    with pytest.raises(UnknownRuntimeHandlerError, match="missing"):
        handlers.replace(wrong)
    assert handlers.get("").settings.name == "rro"
    assert handlers.facts("rro").name == "rro"
