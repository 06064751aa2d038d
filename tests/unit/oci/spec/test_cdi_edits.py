from typing import Any

import pytest

from cri_shim._pb.cri.v1.api_pb2 import CDIDevice
from cri_shim.errors import InvalidArgumentError, UnsupportedError
from cri_shim.oci.spec.cdi import parse_cdi_spec
from cri_shim.oci.spec.cdi_edits import (
    PlacedSpec,
    apply_edits,
    device_paths,
    edits_for,
    requested_devices,
)
from cri_shim.oci.spec.inputs import DeviceNode, ResolvedUser
from tests.unit.oci.spec.cases import (
    GOLDEN_CGROUP,
    container_config,
    container_facts,
    container_spec,
)

NULL = DeviceNode("/dev/null", "c", 1, 3)


def placed(
    source: str,
    priority: int = 0,
    *,
    shared: dict[str, Any] | None = None,
    kind: str = "vendor.com/gpu",
    **devices: dict[str, Any],
) -> PlacedSpec:
    document = {
        "cdiVersion": "1.1.0",
        "kind": kind,
        "devices": [{"name": n, "containerEdits": e} for n, e in devices.items()],
        "containerEdits": shared or {},
    }
    return PlacedSpec(parse_cdi_spec(document, source), source, priority)


def apply(*edits: dict[str, Any], user: ResolvedUser | None = None, **found: Any) -> dict[str, Any]:
    spec = container_spec(container_config(), user=user or ResolvedUser())
    for number, edit in enumerate(edits):
        file = placed(f"{number}.json", d=edit)
        apply_edits(spec, edits_for(["vendor.com/gpu=d"], [file]), found.get("nodes", {}))
    return spec


def test_devices_are_named_in_the_field_and_in_annotations_each_once() -> None:
    config = container_config(
        CDI_devices=[CDIDevice(name="v/c=1"), CDIDevice(name="v/c=2")],
        annotations={"cdi.k8s.io/b": "v/c=3,v/c=1", "cdi.k8s.io/a": "v/c=4", "other": "v/c=5"},
    )
    assert requested_devices(config) == ("v/c=1", "v/c=2", "v/c=4", "v/c=3")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"CDI_devices": [CDIDevice(name="gpu0")]}, r"CDI_devices\[0\].name: 'gpu0'"),
        ({"CDI_devices": [CDIDevice(name="")]}, "CDI_devices"),
        ({"annotations": {"cdi.k8s.io/x": "v/c=1,"}}, "annotations"),
        ({"annotations": {"cdi.k8s.io/x": "v/c=1, v/c=2"}}, "annotations"),
    ],
)
def test_what_is_no_qualified_name_is_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgumentError, match=field):
        requested_devices(container_config(**fields))


def test_edits_of_a_file_come_once_before_those_of_its_devices() -> None:
    file = placed("a", shared={"env": ["S=1"]}, x={"env": ["X=1"]}, y={"env": ["Y=1"]})
    other = placed("b", kind="vendor.com/nic", shared={"env": ["N=1"]}, z={"env": ["Z=1"]})
    names = ["vendor.com/gpu=y", "vendor.com/nic=z", "vendor.com/gpu=x"]
    edits = edits_for(names, [file, other])
    assert [entry for edit in edits for entry in edit.env] == ["S=1", "Y=1", "N=1", "Z=1", "X=1"]


def test_later_directory_wins() -> None:
    low, high = (
        placed("/etc/a", 0, d={"env": ["A=low"]}),
        placed("/run/a", 1, d={"env": ["A=high"]}),
    )
    [_, device] = edits_for(["vendor.com/gpu=d"], [high, low])
    assert device.env == ("A=high",)


def test_two_files_of_one_directory_are_ambiguous_and_named() -> None:
    with pytest.raises(InvalidArgumentError, match="/etc/a and /etc/b"):
        edits_for(["vendor.com/gpu=d"], [placed("/etc/a", d={}), placed("/etc/b", d={})])


def test_unknown_device_is_refused_with_those_there_are_and_what_is_wrong() -> None:
    with pytest.raises(InvalidArgumentError, match=r"vendor.com/gpu=d.*unusable files: x is bad"):
        edits_for(["vendor.com/gpu=9"], [placed("/etc/a", d={})], ["x is bad"])
    with pytest.raises(InvalidArgumentError, match="devices of this kind: none"):
        edits_for(["other.com/gpu=9"], [placed("/etc/a", d={})])


def test_environment_is_replaced_by_name() -> None:
    spec = apply({"env": ["PATH=/opt", "NEW=1"]}, {"env": ["NEW=2"]})
    assert [e for e in spec["process"]["env"] if e.startswith(("PATH=", "NEW="))] == [
        "PATH=/opt",
        "NEW=2",
    ]


def test_device_is_looked_up_on_the_node_and_belongs_to_the_user() -> None:
    edit = {"deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/null", "permissions": "wr"}]}
    [edits] = edits_for(["vendor.com/gpu=d"], [placed("a", d=edit)])[1:]
    assert device_paths([edits]) == ["/dev/null"]
    spec = apply(edit, user=ResolvedUser(uid=1000, gid=0), nodes={"/dev/null": (NULL,)})
    assert spec["linux"]["devices"] == [
        {"path": "/dev/gpu0", "type": "c", "major": 1, "minor": 3, "uid": 1000}
    ]
    assert spec["linux"]["resources"]["devices"][-1] == {
        "allow": True,
        "type": "c",
        "major": 1,
        "minor": 3,
        "access": "rw",
    }


def test_device_that_the_file_describes_wholly_is_not_looked_up() -> None:
    node = {"path": "/dev/x", "type": "b", "major": 8, "minor": 0, "fileMode": 0o640, "gid": 6}
    spec = apply({"deviceNodes": [node]}, {"deviceNodes": [{**node, "permissions": "none"}]})
    [device] = spec["linux"]["devices"]
    assert device == {**node}
    rules = [r for r in spec["linux"]["resources"]["devices"] if r.get("type") == "b"]
    assert [rule["access"] for rule in rules] == ["rwm"], "none asks for no permission"


def test_pipe_has_no_number() -> None:
    spec = apply({"deviceNodes": [{"path": "/dev/pipe", "type": "p"}]})
    assert spec["linux"]["devices"] == [{"path": "/dev/pipe", "type": "p"}]


@pytest.mark.parametrize(
    ("node", "nodes", "words"),
    [
        ({"path": "/dev/no"}, {}, "no such device"),
        ({"path": "/dev/null", "type": "b"}, {"/dev/null": (NULL,)}, "of type c, not b"),
        ({"path": "/dev/dir"}, {"/dev/dir": (NULL, NULL)}, "no such device"),
    ],
)
def test_device_that_is_not_there_is_refused(
    node: dict[str, Any], nodes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        apply({"deviceNodes": [node]}, nodes=nodes)


def test_mounts_replace_those_at_their_place_and_stay_in_order() -> None:
    spec = apply(
        {
            "mounts": [
                {"hostPath": "/usr/lib/x", "containerPath": "/opt/a/b"},
                {"hostPath": "/o", "containerPath": "/opt", "options": ["ro", "bind"]},
                {"hostPath": "tmpfs", "containerPath": "/dev/shm", "type": "tmpfs"},
            ]
        }
    )
    places = [mount["destination"] for mount in spec["mounts"]]
    assert places.index("/opt") < places.index("/opt/a/b")
    assert places.count("/dev/shm") == 1
    by_place = {mount["destination"]: mount for mount in spec["mounts"]}
    assert by_place["/opt/a/b"]["options"] == ["rbind"]
    assert by_place["/opt"] == {
        "destination": "/opt",
        "source": "/o",
        "type": "bind",
        "options": ["ro", "bind"],
    }
    assert by_place["/dev/shm"]["type"] == "tmpfs"


def test_hooks_groups_and_cache_reach_the_spec() -> None:
    spec = apply(
        {
            "hooks": [{"hookName": "createContainer", "path": "/bin/h", "args": ["h"]}],
            "additionalGids": [44, 0, 44],
            "intelRdt": {"closID": "guaranteed", "enableCMT": True},
        }
    )
    assert spec["hooks"]["createContainer"][0]["path"] == "/bin/h"
    assert spec["process"]["user"]["additionalGids"] == [0, 44]
    assert spec["linux"]["intelRdt"] == {"closID": "guaranteed", "enableCMT": True}


def test_network_devices_are_refused_rather_than_left_out() -> None:
    with pytest.raises(UnsupportedError, match="netDevices"):
        apply({"netDevices": [{"hostInterfaceName": "a", "name": "b"}]})


def test_builder_applies_what_the_caller_found() -> None:
    config = container_config(CDI_devices=[CDIDevice(name="vendor.com/gpu=d")])
    edits = edits_for(["vendor.com/gpu=d"], [placed("a", d={"env": ["GPU=0"]})])
    spec = container_spec(config, container=container_facts(GOLDEN_CGROUP, cdi_edits=edits))
    assert "GPU=0" in spec["process"]["env"]


def test_cve_2026_53492_devices_are_asked_for_by_the_request_alone() -> None:
    """Not by labels, which an image or a checkpoint could have brought."""
    config = container_config(labels={"cdi.k8s.io/x": "vendor.com/gpu=0"})
    assert requested_devices(config) == ()
