"""Where files are: below the two trees, derived from an ID alone, within the kernel's bounds."""

from __future__ import annotations

from pathlib import Path

from cri_shim.paths import NETNS_DIR, ObjectPaths, Paths, netns_file

ID = "0123456789abcdef" * 4
PATHS = Paths(Path("/var/lib/cri-shim"), Path("/run/cri-shim"))
MAX_SOCKET_PATH = 107


def properties(of: object) -> dict[str, Path]:
    return {
        name: getattr(of, name)
        for name in dir(type(of))
        if isinstance(getattr(type(of), name), property)
    }


def test_everything_of_an_object_is_in_its_two_directories() -> None:
    for paths in (PATHS.sandbox(ID), PATHS.container(ID)):
        for name, path in properties(paths).items():
            assert path.is_relative_to(paths.root_dir) or path.is_relative_to(paths.state_dir), name
        assert paths.root_dir.is_relative_to(PATHS.root)
        assert paths.state_dir.is_relative_to(PATHS.state)
        assert paths.root_dir.name == paths.state_dir.name == ID


def test_sandboxes_and_containers_share_no_directory() -> None:
    one, other = PATHS.sandbox(ID), PATHS.container(ID)
    assert {one.root_dir, one.state_dir}.isdisjoint({other.root_dir, other.state_dir})


def test_objects_are_where_their_lists_are_read() -> None:
    assert PATHS.sandbox(ID).root_dir.parent == PATHS.sandboxes_dir
    assert PATHS.container(ID).root_dir.parent == PATHS.containers_dir


def test_what_must_survive_a_reboot_is_in_the_root() -> None:
    paths = PATHS.container(ID)
    for path in (paths.record_file, paths.status_file, paths.upper_dir, paths.work_dir):
        assert path.is_relative_to(PATHS.root)
    for path in (paths.rootfs_dir, paths.spec_file, paths.pid_file, paths.top_process_file):
        assert path.is_relative_to(PATHS.state)


def test_an_overlays_two_directories_are_on_one_file_system() -> None:
    paths = PATHS.container(ID)
    assert paths.upper_dir.parent == paths.work_dir.parent


def test_no_two_files_are_the_same() -> None:
    files = properties(PATHS.container(ID))
    del files["bundle_dir"]  # the bundle is the volatile directory itself
    assert len(set(files.values())) == len(files)
    directories = properties(PATHS)
    assert len(set(directories.values())) == len(directories)


def test_each_handlers_state_is_its_own() -> None:
    assert PATHS.runtime_root("runc") != PATHS.runtime_root("crun")
    assert PATHS.runtime_root("runc").is_relative_to(PATHS.state)


def test_a_namespaces_name_tells_its_sandbox_and_no_two_share_it() -> None:
    assert netns_file(ID).parent == NETNS_DIR
    assert ID.startswith(netns_file(ID).name.removeprefix("cri-"))
    assert netns_file(ID) != netns_file("1" + ID[1:])


def test_a_terminals_socket_fits_the_kernels_bound() -> None:
    socket = PATHS.console_dir / ID[:12] / "conmon-term.XXXXXX"
    assert len(str(socket)) <= MAX_SOCKET_PATH


def test_paths_are_values() -> None:
    assert Paths(PATHS.root, PATHS.state) == PATHS
    assert PATHS.container(ID) == ObjectPaths(
        PATHS.containers_dir / ID, PATHS.state / "containers" / ID
    )
