"""Reading a configuration file, and the folder that may complete it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from cri_shim.cni.conf import parse_conflist
from cri_shim.cni.conf_files import LoadedFile, load_file, scan

if TYPE_CHECKING:
    from pathlib import Path


def write_list(directory: Path, **more: object) -> Path:
    file = directory / "10-pods.conflist"
    document = {"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}], **more}
    file.write_text(json.dumps(document))
    return file


def add_plugin(directory: Path, name: str, plugin: str) -> None:
    (directory / "pods").mkdir(exist_ok=True)
    (directory / "pods" / name).write_text(json.dumps({"type": plugin}))


def load(file: Path, known: LoadedFile | None = None) -> LoadedFile:
    return load_file(file, scan(file.parent)[0][file.name], known)


def is_current(loaded: LoadedFile) -> bool:
    return loaded.is_current(scan(loaded.path.parent)[0][loaded.path.name])


def types(loaded: LoadedFile) -> list[str]:
    assert loaded.network is not None, loaded.problem
    return [plugin.type for plugin in loaded.network.plugins]


def test_plugins_of_the_networks_folder_come_after_those_of_the_list(tmp_path: Path) -> None:
    file = write_list(tmp_path)
    add_plugin(tmp_path, "20-mesh.conf", "mesh")
    add_plugin(tmp_path, "10-tuning.conf", "tuning")
    add_plugin(tmp_path, "30-list.conflist", "no-plugin")
    loaded = load(file)
    assert types(loaded) == ["bridge", "tuning", "mesh"]
    # What the result cache keeps needs no folder any more.
    assert loaded.network is not None
    kept = parse_conflist(loaded.network.document, source="cache")
    assert [plugin.type for plugin in kept.plugins] == ["bridge", "tuning", "mesh"]


def test_a_list_may_have_all_its_plugins_in_the_folder(tmp_path: Path) -> None:
    file = tmp_path / "10-pods.conflist"
    file.write_text('{"cniVersion": "1.1.0", "name": "pods"}')
    assert "plugins: is missing" in load(file).problem
    add_plugin(tmp_path, "10-mesh.conf", "mesh")
    assert types(load(file)) == ["mesh"]


def test_the_folder_does_not_count_where_only_inlined_plugins_do(tmp_path: Path) -> None:
    file = write_list(tmp_path, loadOnlyInlinedPlugins=True)
    add_plugin(tmp_path, "10-mesh.conf", "mesh")
    assert types(load(file)) == ["bridge"]


def test_a_change_in_the_folder_is_a_change_of_the_file(tmp_path: Path) -> None:
    file = write_list(tmp_path)
    before = load(file)
    assert is_current(before)
    add_plugin(tmp_path, "10-mesh.conf", "mesh")
    assert not is_current(before)
    after = load(file, before)
    assert (types(after), is_current(after)) == (["bridge", "mesh"], True)
    (tmp_path / "pods" / "10-mesh.conf").unlink()
    assert not is_current(after)
    assert types(load(file, after)) == ["bridge"]


@pytest.mark.parametrize("content", ["{", '{"name": "x"}', '{"type": "../sh"}'])
def test_a_bad_file_of_the_folder_is_named_and_the_former_network_stays(
    tmp_path: Path, content: str
) -> None:
    file = write_list(tmp_path)
    before = load(file)
    add_plugin(tmp_path, "10-mesh.conf", "mesh")
    (tmp_path / "pods" / "10-mesh.conf").write_text(content)
    after = load(file, before)
    assert str(tmp_path / "pods" / "10-mesh.conf") in after.problem
    assert types(after) == ["bridge"]
    assert is_current(after)


def test_a_folder_with_too_many_files_is_no_folder_of_plugins(tmp_path: Path) -> None:
    file = write_list(tmp_path)
    add_plugin(tmp_path, "0.conf", "mesh")
    for number in range(200):
        (tmp_path / "pods" / f"{number}x.conf").touch()
    assert "only the first 200 count" in load(file).problem


def test_a_file_of_the_folders_name_is_no_folder(tmp_path: Path) -> None:
    file = write_list(tmp_path)
    (tmp_path / "pods").write_text("something else")
    assert types(load(file)) == ["bridge"]
