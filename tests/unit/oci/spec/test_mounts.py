from dataclasses import replace
from typing import Any

import pytest

from cri_shim._pb.cri.v1 import api_pb2
from cri_shim._pb.cri.v1.api_pb2 import (
    IDMapping,
    ImageSpec,
    LinuxContainerSecurityContext,
    Mount,
    NamespaceOption,
)
from cri_shim.errors import InvalidArgumentError
from cri_shim.oci.spec.inputs import BindVolume, HandlerFacts
from cri_shim.oci.spec.mounts import (
    MAX_DEPTH,
    MAX_MOUNTS,
    ImageMount,
    build_container_mounts,
    build_sandbox_mounts,
    check_cost,
    image_mounts,
    rootfs_propagation,
    volume_paths,
)
from tests.unit.oci.spec.cases import GOLDEN_CGROUP, RUNC, container_config, sandbox_facts

SANDBOX = sandbox_facts(GOLDEN_CGROUP)
BIDIRECTIONAL = api_pb2.PROPAGATION_BIDIRECTIONAL
FROM_HOST = api_pb2.PROPAGATION_HOST_TO_CONTAINER


def mount(path: str = "/data", host: str = "/host", **fields: Any) -> Mount:
    return Mount(container_path=path, host_path=host, **fields)


def build(
    *mounts: Mount,
    volumes: tuple[BindVolume, ...] = (),
    context: LinuxContainerSecurityContext | None = None,
    **changes: Any,
) -> dict[str, dict[str, Any]]:
    made = build_container_mounts(
        container_config(mounts=mounts, context=context),
        sandbox=changes.get("sandbox", SANDBOX),
        handler=changes.get("handler", RUNC),
        node=changes.get("node", GOLDEN_CGROUP.node),
        volumes=volumes,
        sources=changes.get("sources", {}),
    )
    by_path = {entry["destination"]: entry for entry in made}
    assert len(by_path) == len(made), "two mounts at one path"
    return by_path


def test_ordinary_container_has_the_usual_file_systems_read_only_where_they_are_the_nodes() -> None:
    mounts = build()
    assert list(mounts)[:3] == ["/proc", "/dev", "/sys"]
    assert "ro" in mounts["/sys"]["options"]
    assert "ro" in mounts["/sys/fs/cgroup"]["options"]
    assert mounts["/dev/shm"]["source"] == GOLDEN_CGROUP.shm
    assert mounts["/etc/hosts"]["options"] == ["rbind", "rprivate", "nosuid", "noexec", "nodev"]


def test_privileged_container_may_write_sys_and_its_cgroup() -> None:
    mounts = build(context=LinuxContainerSecurityContext(privileged=True))
    assert "rw" in mounts["/sys"]["options"]
    assert "rw" in mounts["/sys/fs/cgroup"]["options"]


def test_generated_files_are_read_only_with_the_root() -> None:
    mounts = build(context=LinuxContainerSecurityContext(readonly_rootfs=True))
    for path in ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf"):
        assert mounts[path]["options"][-1] == "ro"
    assert "ro" not in mounts["/dev/shm"]["options"]


def test_host_ipc_brings_the_nodes_shm() -> None:
    options = NamespaceOption(ipc=api_pb2.NODE)
    mounts = build(context=LinuxContainerSecurityContext(namespace_options=options))
    assert mounts["/dev/shm"]["source"] == "/dev/shm"


def test_what_the_pod_does_not_have_is_not_mounted() -> None:
    bare = replace(
        SANDBOX, shm_dir=None, hostname_file=None, hosts_file=None, resolv_conf_file=None
    )
    mounts = build(sandbox=bare)
    assert not {"/dev/shm", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf"} & set(mounts)


@pytest.mark.parametrize("path", ["/etc/hosts", "/dev/shm", "/sys/fs/cgroup", "/proc", "/dev/shm/"])
def test_requested_mount_replaces_the_default_at_its_path(path: str) -> None:
    assert build(mount(path))[path.rstrip("/")]["source"] == "/host"


def test_requested_dev_takes_the_defaults_below_it_away() -> None:
    mounts = build(mount("/dev"), mount("/dev/shm", "/mine"))
    below = {path: entry["source"] for path, entry in mounts.items() if path.startswith("/dev")}
    assert below == {"/dev": "/host", "/dev/shm": "/mine"}


def test_requested_sys_takes_the_cgroups_below_it_away() -> None:
    assert [path for path in build(mount("/sys")) if path.startswith("/sys")] == ["/sys"]


def test_what_is_bound_is_what_the_host_path_turned_out_to_be() -> None:
    assert build(mount(), sources={0: "/real"})["/data"]["source"] == "/real"


@pytest.mark.parametrize("path", ["/proc/self", "/proc/sys", "/proc/sysrq-trigger", "/x/../proc/1"])
def test_nothing_covers_a_part_of_proc(path: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"mounts\[0\]\.container_path"):
        build(mount(path))


def test_lxcfs_may_stand_in_for_what_it_stands_in_for() -> None:
    assert build(mount("/proc/meminfo"))["/proc/meminfo"]["source"] == "/host"


def an_image(**fields: Any) -> Mount:
    return Mount(container_path="/data", image=ImageSpec(image="x"), readonly=True, **fields)


def test_image_is_bound_from_where_it_is_mounted_and_brings_no_rights() -> None:
    made = build(an_image(mount_options=["noexec"]), sources={0: "/state/images/0"})["/data"]
    assert made["source"] == "/state/images/0"
    assert made["options"] == ["rbind", "rprivate", "ro", "noexec", "nosuid", "nodev"]
    made = build(an_image(), sources={0: "/state/images/0"})["/data"]
    assert made["options"] == ["rbind", "rprivate", "ro", "nosuid", "nodev"]


def test_image_is_not_mapped_twice() -> None:
    wanted = an_image(uidMappings=[MAPPING], gidMappings=[MAPPING])
    made = build(wanted, handler=MAPPED, sources={0: "/state/images/0"})["/data"]
    assert "uidMappings" not in made


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        (mount(image=ImageSpec(image="x")), "readonly"),
        (mount(image=ImageSpec(image="x"), readonly=True), "host_path"),
        (an_image(propagation=BIDIRECTIONAL), "propagation"),
        (Mount(container_path="/data", image=ImageSpec(), readonly=True), r"image\.image"),
        (mount(image_sub_path="x"), "image_sub_path"),
    ],
)
def test_image_volume_that_can_not_be_is_refused_by_its_field(wanted: Mount, field: str) -> None:
    for refuse in (build, lambda m: image_mounts(container_config(mounts=[m]))):
        with pytest.raises(InvalidArgumentError, match=rf"mounts\[0\]\.{field}"):
            refuse(wanted)


def test_images_to_mount_are_known_by_their_place_in_the_request() -> None:
    config = container_config(mounts=[mount(), an_image(image_sub_path="a/b")])
    assert image_mounts(config) == [ImageMount(1, "x", "a/b")]


def test_volumes_of_an_image_go_where_nothing_is_requested_and_nothing_is_the_kernels() -> None:
    config = container_config(mounts=[mount("/data/")])
    declared = [
        "/data",
        "db",
        "/db/",
        "/a/../../b",
        "/",
        "/proc",
        "/sys/fs/cgroup",
        "/dev/shm",
        "/x\0",
        "/" + "n" * 256,
        "/n" * 2100,
    ]
    assert list(volume_paths(declared, config)) == ["/db", "/b"]


def test_mount_that_lies_too_deep_is_refused_by_its_place_in_the_request() -> None:
    deep = "/m" * MAX_DEPTH
    check_cost(container_config(mounts=[mount(deep), mount(f"{deep}//../m/./")]))
    with pytest.raises(InvalidArgumentError, match=r"mounts\[1\].container_path: .*33 names: at"):
        check_cost(container_config(mounts=[mount(), mount(f"{deep}/m")]))
    assert list(volume_paths([deep], container_config())) == [deep]
    with pytest.raises(InvalidArgumentError, match=r"image VOLUME: .*33 names: at most 32"):
        list(volume_paths([f"{deep}/m"], container_config()))


def test_more_mounts_than_a_runtime_makes_in_time_are_refused() -> None:
    mounts = [mount(f"/m/{number}") for number in range(MAX_MOUNTS + 1)]
    check_cost(container_config(mounts=mounts[1:]))
    with pytest.raises(InvalidArgumentError, match="mounts: 1025 entries: at most 1024"):
        check_cost(container_config(mounts=mounts))


def test_later_of_two_at_one_path_stays() -> None:
    assert build(mount(host="/one"), mount("/data/", host="/two"))["/data"]["source"] == "/two"


def test_shallow_mounts_come_before_deep_ones_and_else_the_order_is_kept() -> None:
    paths = list(build(mount("/a/b/c"), mount("/z"), mount("/a"), mount("/a/b")))
    depths = [path.count("/") for path in paths]
    assert depths == sorted(depths)
    assert paths.index("/z") < paths.index("/a")


def test_image_volume_gives_way_to_a_request_at_its_path() -> None:
    volumes = (BindVolume("/data", "/copied"), BindVolume("/db/", "/copied-db"))
    mounts = build(mount("/data"), volumes=volumes)
    assert mounts["/data"]["source"] == "/host"
    assert mounts["/db"] == {
        "destination": "/db",
        "type": "bind",
        "source": "/copied-db",
        "options": ["rbind", "rprivate"],
    }


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, ["rprivate"]),
        ({"readonly": True}, ["rprivate", "ro"]),
        ({"propagation": FROM_HOST}, ["rslave"]),
        ({"propagation": BIDIRECTIONAL, "readonly": True}, ["rshared", "ro"]),
        ({"readonly": True, "recursive_read_only": True}, ["rprivate", "rro", "ro"]),
        ({"mount_options": ["noexec", "nodev", "noexec"]}, ["rprivate", "noexec", "nodev"]),
        ({"selinux_relabel": True}, ["rprivate"]),
    ],
)
def test_fields_become_options(fields: dict[str, Any], options: list[str]) -> None:
    assert build(mount(**fields))["/data"]["options"] == ["rbind", *options]


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (mount("data"), r"mounts\[0\].container_path"),
        (mount(""), r"mounts\[0\].container_path"),
        (mount("/"), "the root directory"),
        (mount("/x/.."), "the root directory"),
        (mount(host=""), r"mounts\[0\].host_path"),
        (mount(host="etc"), r"mounts\[0\].host_path"),
        (mount("/a\0b"), "NUL"),
        (mount(mount_options=["exec"]), "mount_options: 'exec'"),
        (mount(mount_options=["noexec,suid"]), "mount_options"),
        (mount(recursive_read_only=True), "requires readonly"),
        (
            mount(recursive_read_only=True, readonly=True, propagation=FROM_HOST),
            "PROPAGATION_PRIVATE",
        ),
        (Mount.FromString(bytes.fromhex("0a022f6112022f622809")), "propagation: 9"),
    ],
)
def test_malformed_mount_is_refused_with_its_place(wanted: Mount, says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        build(wanted)


def test_recursive_read_only_needs_a_handler_that_can() -> None:
    wanted = mount(recursive_read_only=True, readonly=True)
    with pytest.raises(InvalidArgumentError, match="'old'"):
        build(wanted, handler=HandlerFacts("old"))


MAPPED = replace(RUNC, user_namespaces=True)
MAPPING = IDMapping(host_id=200_000, container_id=0, length=65536)


def test_volume_belongs_to_whom_its_mappings_say() -> None:
    wanted = mount(uidMappings=[MAPPING], gidMappings=[MAPPING])
    expected = [{"containerID": 0, "hostID": 200_000, "size": 65536}]
    built = build(wanted, handler=MAPPED)["/data"]
    assert built["uidMappings"] == built["gidMappings"] == expected
    assert "uidMappings" not in build(mount(), handler=MAPPED)["/data"]


@pytest.mark.parametrize(
    ("wanted", "handler", "field"),
    [
        (mount(uidMappings=[MAPPING]), MAPPED, "gidMappings"),
        (mount(gidMappings=[MAPPING]), MAPPED, "uidMappings"),
        (mount(uidMappings=[MAPPING], gidMappings=[MAPPING]), RUNC, "uidMappings"),
        (
            mount(uidMappings=[MAPPING], gidMappings=[IDMapping()]),
            MAPPED,
            r"gidMappings\.length",
        ),
    ],
)
def test_mappings_that_can_not_be_are_refused(
    wanted: Mount, handler: HandlerFacts, field: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"mounts\[0\]\.{field}"):
        build(wanted, handler=handler)


def test_relabel_is_refused_for_what_is_the_nodes_where_selinux_enforces() -> None:
    node = replace(GOLDEN_CGROUP.node, selinux_enabled=True)
    with pytest.raises(InvalidArgumentError, match="selinux_relabel"):
        build(mount(host="/etc", selinux_relabel=True), node=node)
    with pytest.raises(InvalidArgumentError, match="selinux_relabel"):
        build(mount(host="/link", selinux_relabel=True), node=node, sources={0: "/usr"})
    assert build(mount(selinux_relabel=True), node=node)
    assert build(mount(host="/etc", selinux_relabel=True))


@pytest.mark.parametrize(
    ("propagations", "root"),
    [([], None), ([0], None), ([0, FROM_HOST], "rslave"), ([FROM_HOST, BIDIRECTIONAL], "rshared")],
)
def test_root_propagates_as_far_as_its_mounts_need(
    propagations: list[Any], root: str | None
) -> None:
    config = container_config(mounts=[mount(propagation=value) for value in propagations])
    assert rootfs_propagation(config) == root


def test_pause_of_a_pod_without_shm_or_dns_has_the_kernels_file_systems_alone() -> None:
    bare = replace(SANDBOX, shm_dir=None, resolv_conf_file=None)
    mounts = build_sandbox_mounts(bare, host_ipc=False)
    assert [entry["destination"] for entry in mounts] == ["/proc", "/dev", "/sys"]


def test_first_sysfs_of_a_privileged_pod_is_writable() -> None:
    def sys_options(*, privileged: bool) -> list[str]:
        sandbox = replace(SANDBOX, privileged=privileged)
        mounts = build_sandbox_mounts(sandbox, host_ipc=False)
        options: list[str] = next(m["options"] for m in mounts if m["destination"] == "/sys")
        return options

    assert "rw" in sys_options(privileged=True)
    assert "ro" in sys_options(privileged=False)
