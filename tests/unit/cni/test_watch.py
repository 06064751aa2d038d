from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from cri_shim.cni.conf import MAX_CONF_BYTES
from cri_shim.cni.conf_files import MAX_FILES
from cri_shim.cni.invoke import PluginRunner
from cri_shim.cni.watch import NetworkConfigs
from cri_shim.host.process import Reaper
from tests.fakes.clock import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def conf_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "net.d"
    directory.mkdir()
    return directory


@pytest.fixture
def changes() -> list[None]:
    """One for each time that something else was found than before."""
    return []


@pytest.fixture
def configs(conf_dir: Path, changes: list[None]) -> Iterator[NetworkConfigs]:
    configs = NetworkConfigs(conf_dir, changed=lambda: changes.append(None))
    configs.load()
    yield configs
    configs.close()


@pytest.fixture
def runner(tmp_path: Path) -> PluginRunner:
    plugin = tmp_path / "bin" / "bridge"
    plugin.parent.mkdir()
    plugin.touch(mode=0o755)
    return PluginRunner(Reaper(), [tmp_path / "bin"], timeout_s=1)


def document(name: str, *types: str) -> str:
    plugins = [{"type": kind} for kind in types or ("bridge",)]
    return json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": plugins})


def default_name(configs: NetworkConfigs) -> str | None:
    file = configs.default
    return file.network.name if file is not None and file.network is not None else None


def test_the_first_file_by_name_is_the_default_network(
    conf_dir: Path, configs: NetworkConfigs
) -> None:
    (conf_dir / "20-b.conflist").write_text(document("b"))
    (conf_dir / "30-c.json").write_text('{"name": "c", "type": "ptp"}')
    (conf_dir / "10-a.conf").write_text('{"name": "a", "type": "ptp"}')
    (conf_dir / "00-note.txt").write_text("ignored")
    (conf_dir / ".01-editor.conflist").write_text("ignored")
    (conf_dir / "02-folder.conf").mkdir()
    assert list(configs.networks) == ["a", "b", "c"]
    assert default_name(configs) == "a"
    assert configs.problems == ()


def test_an_empty_directory_is_not_ready_and_says_how_to_fix_it(
    conf_dir: Path, configs: NetworkConfigs, runner: PluginRunner
) -> None:
    status = configs.status(runner)
    assert (status.ready, status.reason) == (False, "NetworkPluginNotReady")
    assert f"no network configuration found in {conf_dir}: put a .conflist there" in status.message


def test_a_directory_made_later_makes_the_network_ready(
    tmp_path: Path, runner: PluginRunner
) -> None:
    configs = NetworkConfigs(tmp_path / "late" / "net.d")
    configs.load()
    assert not configs.status(runner).ready
    configs.conf_dir.mkdir(parents=True)
    (configs.conf_dir / "10.conflist").write_text(document("pods"))
    assert configs.status(runner).ready


def test_a_file_dropped_in_or_taken_away_counts_at_the_next_question(
    conf_dir: Path, configs: NetworkConfigs, runner: PluginRunner
) -> None:
    file = conf_dir / "10.conflist"
    file.write_text(document("pods"))
    assert configs.status(runner).ready
    file.unlink()
    assert not configs.status(runner).ready
    assert dict(configs.networks) == {}


def test_a_file_that_turns_bad_keeps_its_network_and_says_why(
    conf_dir: Path, configs: NetworkConfigs, runner: PluginRunner
) -> None:
    file = conf_dir / "10.conflist"
    file.write_text(document("pods"))
    (conf_dir / "20.conflist").write_text(document("other"))
    assert default_name(configs) == "pods"
    file.write_text("{ half")
    status = configs.status(runner)
    assert (status.ready, status.reason) == (True, "NetworkConfigurationRejected")
    assert f"{file}: not a JSON object" in status.message
    assert "network 'pods' keeps its earlier configuration" in status.message
    assert default_name(configs) == "pods"
    configs.load()
    assert default_name(configs) == "pods"
    file.write_text(document("repaired"))
    assert configs.status(runner).message == ""
    assert default_name(configs) == "repaired"


def test_a_file_bad_from_the_start_leaves_the_default_to_the_next(
    conf_dir: Path, configs: NetworkConfigs, runner: PluginRunner
) -> None:
    (conf_dir / "10.conflist").write_text("{}")
    status = configs.status(runner)
    assert not status.ready
    assert "no usable network configuration" in status.message
    assert "10.conflist: name: is missing" in status.message
    (conf_dir / "20.conflist").write_text(document("pods"))
    assert default_name(configs) == "pods"


def test_of_two_networks_with_one_name_the_first_counts(
    conf_dir: Path, configs: NetworkConfigs
) -> None:
    (conf_dir / "10.conflist").write_text(document("pods", "bridge"))
    (conf_dir / "20.conflist").write_text(document("pods", "ptp"))
    assert [plugin.type for plugin in configs.networks["pods"].plugins] == ["bridge"]
    assert "10.conflist already defines network" in configs.problems[0]


def test_a_missing_plugin_of_the_default_network_is_named(
    tmp_path: Path, conf_dir: Path, configs: NetworkConfigs, runner: PluginRunner
) -> None:
    (conf_dir / "10.conflist").write_text(document("pods", "bridge", "portmap", "tuning"))
    status = configs.status(runner)
    assert (status.ready, status.reason) == (False, "NetworkPluginNotReady")
    assert "needs the CNI plugin portmap and tuning, not found in" in status.message
    assert str(tmp_path / "bin") in status.message
    for plugin in ("portmap", "tuning"):
        (tmp_path / "bin" / plugin).touch(mode=0o755)
    assert configs.status(runner).ready


def test_a_missing_plugin_of_another_network_does_not_matter(
    conf_dir: Path, configs: NetworkConfigs, runner: PluginRunner
) -> None:
    (conf_dir / "10.conflist").write_text(document("pods"))
    (conf_dir / "20.conflist").write_text(document("extra", "macvlan"))
    assert configs.status(runner).ready


def test_only_the_first_200_files_count(conf_dir: Path, configs: NetworkConfigs) -> None:
    for number in range(MAX_FILES + 2):
        (conf_dir / f"{number:03}.conflist").write_text(document(f"n{number}"))
    assert len(configs.networks) == MAX_FILES
    assert "202 configuration files; only the first 200 count" in configs.problems[0]


def test_what_is_no_small_regular_file_is_a_problem_not_a_hang(
    conf_dir: Path, configs: NetworkConfigs
) -> None:
    os.mkfifo(conf_dir / "10.conflist")
    (conf_dir / "20.conflist").write_bytes(b" " * (MAX_CONF_BYTES + 1))
    (conf_dir / "30.conflist").symlink_to(conf_dir / "nowhere")
    assert dict(configs.networks) == {}
    fifo, large = configs.problems
    assert "10.conflist: can't be read: not a regular file" in fifo
    assert "20.conflist: can't be read: larger than" in large


def test_a_link_that_moves_to_another_file_is_seen(
    tmp_path: Path, conf_dir: Path, configs: NetworkConfigs
) -> None:
    for name in ("old", "new"):
        (tmp_path / name).write_text(document(name))
    link = conf_dir / "10.conflist"
    link.symlink_to(tmp_path / "old")
    assert default_name(configs) == "old"
    link.unlink()
    link.symlink_to(tmp_path / "new")
    assert default_name(configs) == "new"


def test_a_directory_that_cannot_be_read_keeps_what_is_known(
    conf_dir: Path, configs: NetworkConfigs, runner: PluginRunner
) -> None:
    (conf_dir / "10.conflist").write_text(document("pods"))
    assert default_name(configs) == "pods"
    conf_dir.rename(conf_dir.with_name("moved"))
    conf_dir.write_text("not a directory")
    status = configs.status(runner)
    assert status.ready
    assert "Not a directory" in status.message


def test_unchanged_files_are_not_read_again(conf_dir: Path, configs: NetworkConfigs) -> None:
    (conf_dir / "10.conflist").write_text(document("pods"))
    assert configs.networks["pods"] is configs.networks["pods"]


@pytest.mark.asyncio
async def test_the_watch_loads_a_file_without_being_asked(
    conf_dir: Path, configs: NetworkConfigs, changes: list[None]
) -> None:
    configs.watch()
    put(conf_dir / "10.conflist", document("pods"))
    await until(lambda: len(changes) == 1)
    assert list(configs.networks) == ["pods"]
    (conf_dir / "10.conflist").unlink()
    await until(lambda: len(changes) == 2)
    assert list(configs.networks) == []


@pytest.mark.asyncio
async def test_the_watch_moves_to_a_directory_that_replaced_the_first(
    conf_dir: Path, configs: NetworkConfigs, changes: list[None]
) -> None:
    configs.watch()
    conf_dir.rmdir()
    configs.refresh()
    conf_dir.mkdir()
    configs.refresh()
    changes.clear()
    put(conf_dir / "10.conflist", document("pods"))
    await until(lambda: changes)
    assert list(configs.networks) == ["pods"]


def put(path: Path, text: str) -> None:
    """Make the file at once, whole: no look finds half of it."""
    (beside := path.with_suffix(".tmp")).write_text(text)
    beside.rename(path)
