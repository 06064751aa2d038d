"""What needs no kernel; the rest is in tests/integration/host/test_cgroups_real.py."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cri_shim.errors import CriShimError, DeadlineError
from cri_shim.host.cgroups import tree as tree_module
from cri_shim.host.cgroups.layout import CgroupMode
from cri_shim.host.cgroups.tree import Cgroups

NODES = Path(__file__).parents[3] / "data/cgroups"
SCOPE = "kubepods.slice/kubepods-besteffort.slice/cri-shim-ab.scope"


def _v2_node(root: Path) -> Path:
    """An empty v2 tree of plain files that take what is written."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text(
        "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", encoding="ascii"
    )
    tree = root / "sys/fs/cgroup"
    (tree / "a/b").mkdir(parents=True)
    (tree / "cgroup.controllers").write_text("cpu memory pids\n", encoding="ascii")
    return tree


def test_v2_processes_are_found_below_the_cgroup_too() -> None:
    cgroups = Cgroups.detect(NODES / "v2")

    assert cgroups.mode is CgroupMode.V2
    assert cgroups.pids(SCOPE) == [4242, 4250, 4251]
    assert cgroups.exists(SCOPE)


def test_v1_processes_are_those_of_all_hierarchies() -> None:
    assert Cgroups.detect(NODES / "v1").pids("kubepods/pod1/ab") == [4242, 4243]


def test_absent_cgroup_has_no_processes_and_is_removed_already() -> None:
    cgroups = Cgroups.detect(NODES / "v1")

    assert cgroups.pids("no/such") == []
    assert not cgroups.exists("no/such")
    asyncio.run(cgroups.remove("no/such"))


def test_cgroup_of_a_process_prefers_the_memory_controller() -> None:
    cgroups = Cgroups.detect(NODES / "v1")

    assert cgroups.cgroup_of(4242) == "kubepods/pod1/ab"
    assert cgroups.cgroup_of(4242, controller="name=systemd") == "system.slice/cri-shim.service"
    assert cgroups.cgroup_of(4243) is None


def test_cgroup_of_a_process_is_seen_from_the_mount_point() -> None:
    cgroups = Cgroups.detect(NODES / "v1")  # its pids hierarchy is mounted at /docker/f00

    assert cgroups.cgroup_of(4242, controller="pids") == "kubepods/pod1/ab"


def test_cgroup_of_a_process_on_v2() -> None:
    cgroups = Cgroups.detect(NODES / "v2")

    assert cgroups.cgroup_of(4242) == SCOPE
    assert cgroups.cgroup_of(4242, controller="memory") == SCOPE
    assert cgroups.cgroup_of(4242, controller="net_cls") is None


@pytest.mark.parametrize("relative_dir", ["", "/", "..", "a/../b", "/a", "a//b"])
def test_root_cgroup_is_never_touched(relative_dir: str) -> None:
    cgroups = Cgroups.detect(NODES / "v2")

    with pytest.raises(ValueError, match="below the root"):
        asyncio.run(cgroups.kill_all(relative_dir, 0.1))
    with pytest.raises(ValueError, match="below the root"):
        asyncio.run(cgroups.remove(relative_dir))


def test_killing_an_empty_v2_cgroup_asks_the_kernel_once_and_returns(tmp_path: Path) -> None:
    tree = _v2_node(tmp_path)
    (tree / "a/cgroup.kill").write_text("", encoding="ascii")

    asyncio.run(Cgroups.detect(tmp_path).kill_all("a", 1.0))

    assert (tree / "a/cgroup.kill").read_text(encoding="ascii") == "1"


@pytest.fixture
def no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long look, which would be made in a thread, is an error."""

    async def refuse(what: str, *_: object) -> None:
        raise AssertionError(what)

    monkeypatch.setattr(tree_module, "in_time", refuse)


@pytest.mark.usefixtures("no_thread")
def test_a_cgroup_of_which_the_kernel_counts_and_lists_nobody_is_not_looked_at_longer(
    tmp_path: Path,
) -> None:
    tree = _v2_node(tmp_path)
    for name, text in (("pids.current", "0\n"), ("pids.max", "max"), ("cgroup.procs", "")):
        (tree / "a/b" / name).write_text(text, encoding="ascii")

    asyncio.run(Cgroups.detect(tmp_path).kill_all("a/b", 1.0))

    assert (tree / "a/b/pids.max").read_text(encoding="ascii") == "0ax"  # no fork from then on


@pytest.mark.usefixtures("no_thread")
@pytest.mark.parametrize(
    ("current", "listed", "has_child"),
    [("1\n", "", False), ("0\n", "4194304\n", False), ("0\n", "", True), ("", "", False)],
)
def test_whoever_may_be_in_a_cgroup_is_looked_for(
    tmp_path: Path, current: str, listed: str, *, has_child: bool
) -> None:
    tree = _v2_node(tmp_path)
    (tree / "a/b/pids.current").write_text(current, encoding="ascii")
    (tree / "a/b/cgroup.procs").write_text(listed, encoding="ascii")
    if has_child:
        (tree / "a/b/c").mkdir()
    with pytest.raises(AssertionError, match="killing"):
        asyncio.run(Cgroups.detect(tmp_path).kill_all("a/b", 1.0))


@pytest.mark.usefixtures("no_thread")
def test_a_cgroup_that_has_gone_costs_no_thread(tmp_path: Path) -> None:
    _v2_node(tmp_path)
    cgroups = Cgroups.detect(tmp_path)
    asyncio.run(cgroups.kill_all("a/gone", 1.0))
    asyncio.run(cgroups.remove("a/gone"))


@pytest.mark.usefixtures("no_thread")
def test_a_process_in_one_hierarchy_alone_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(
        "".join(
            f"{number} 23 0:{number} / /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}\n"
            for number, name in ((30, "pids"), (31, "memory"))
        ),
        encoding="ascii",
    )
    for name, listed in (("pids", ""), ("memory", "4194304\n")):
        directory = tmp_path / "sys/fs/cgroup" / name / "a"
        directory.mkdir(parents=True)
        (directory / "cgroup.procs").write_text(listed, encoding="ascii")
    (tmp_path / "sys/fs/cgroup/pids/a/pids.current").write_text("0\n", encoding="ascii")
    with pytest.raises(AssertionError, match="killing"):
        asyncio.run(Cgroups.detect(tmp_path).kill_all("a", 1.0))


def test_kill_gives_up_at_its_deadline_and_names_what_is_left(tmp_path: Path) -> None:
    tree = _v2_node(tmp_path)
    no_pid = 1 << 22  # the largest the kernel gives out is one less
    (tree / "a/b/cgroup.procs").write_text(f"{no_pid}\n", encoding="ascii")
    (tmp_path / f"proc/{no_pid}").mkdir()
    (tmp_path / f"proc/{no_pid}/stat").write_text(f"{no_pid} (stuck (in it)) D 1", encoding="ascii")

    with pytest.raises(
        DeadlineError, match=rf"after SIGKILL: .*{no_pid} \(stuck \(in it\), state D\)"
    ):
        asyncio.run(Cgroups.detect(tmp_path).kill_all("a", 0.01))


def test_busy_cgroup_is_named_when_it_cannot_be_removed(tmp_path: Path) -> None:
    tree = _v2_node(tmp_path)
    (tree / "a/b/file").touch()  # keeps the directory from going, as if it were busy

    with pytest.raises(CriShimError, match=r"cannot remove cgroup /a: .*/a/b is busy"):
        asyncio.run(Cgroups.detect(tmp_path).remove("a", timeout_s=0.01))

    assert tree.is_dir()


def test_cgroups_named_after_a_container_are_found_wherever_they_are(tmp_path: Path) -> None:
    tree = _v2_node(tmp_path)
    (tree / "a/b/12ab").mkdir()
    (tree / "x.slice/cri-shim-12ab.scope/inner").mkdir(parents=True)
    (tree / "other-12ab").mkdir()
    cgroups = Cgroups.detect(tmp_path)
    assert cgroups.find("12ab") == {"a/b/12ab", "x.slice/cri-shim-12ab.scope"}
    assert cgroups.find("ffff") == set()


def test_a_cgroup_is_removed_only_where_nothing_is_in_it(tmp_path: Path) -> None:
    tree = _v2_node(tmp_path)
    (tree / "ours/theirs").mkdir(parents=True)
    cgroups = Cgroups.detect(tmp_path)
    cgroups.remove_if_empty("ours")
    assert (tree / "ours/theirs").is_dir()
    (tree / "ours/theirs").rmdir()
    cgroups.remove_if_empty("ours")
    cgroups.remove_if_empty("ours")
    assert not (tree / "ours").exists()
