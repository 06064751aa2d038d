from typing import Any

import pytest

from cri_shim.errors import ConfigError
from cri_shim.oci.spec.cdi import is_qualified_name, parse_cdi_spec


def document(**changes: Any) -> dict[str, Any]:
    return {
        "cdiVersion": "0.7.0",
        "kind": "vendor.com/gpu",
        "devices": [{"name": "0", "containerEdits": {}}],
        **changes,
    }


def with_edits(version: str = "1.1.0", **edits: Any) -> dict[str, Any]:
    return document(cdiVersion=version, containerEdits=edits)


def test_every_field_is_understood() -> None:
    spec = parse_cdi_spec(
        document(
            cdiVersion="v1.1.0",
            annotations={"a": "b"},
            containerEdits={
                "env": ["A=b=c"],
                "deviceNodes": [
                    {
                        "path": "/dev/x",
                        "hostPath": "/dev/y",
                        "type": "c",
                        "major": 1,
                        "minor": 3,
                        "fileMode": 0o666,
                        "permissions": "rw",
                        "uid": 1,
                        "gid": 2,
                    }
                ],
                "mounts": [
                    {
                        "hostPath": "/lib",
                        "containerPath": "/lib",
                        "type": "none",
                        "options": ["ro", "bind"],
                    }
                ],
                "hooks": [
                    {
                        "hookName": "createContainer",
                        "path": "/bin/h",
                        "args": ["h"],
                        "env": ["X="],
                        "timeout": 3,
                    }
                ],
                "intelRdt": {
                    "closID": "a",
                    "l3CacheSchema": "x",
                    "memBwSchema": "y",
                    "schemata": ["L3:0=f"],
                    "enableMonitoring": True,
                },
                "additionalGids": [5],
                "netDevices": [{"hostInterfaceName": "eth1", "name": "eth0"}],
            },
        ),
        "v.json",
    )
    [node] = spec.container_edits.device_nodes
    assert (node.source, node.needs_lookup) == ("/dev/y", False)
    assert spec.container_edits.hooks[0].hook.timeout == 3


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (document(cdiVersion="0.2.0"), "cdiVersion"),
        (document(cdiVersion="9.0.0"), "cdiVersion"),
        (document(kind="vendor.com"), "kind"),
        (document(kind="1vendor/gpu"), "kind"),
        (document(kind="vendor/gpu/x"), "kind"),
        (document(devices=[]), "devices"),
        (document(devices=[{"name": "a b"}]), "valid device name"),
        (document(devices=[{"name": "0"}, {"name": "0"}]), "twice"),
        (document(extra=1), "extra"),
        (document(devices=[{"name": "0", "edits": {}}]), "edits"),
        ([1], "object"),
        (with_edits(env=["=x"]), "NAME=VALUE"),
        (with_edits(deviceNodes=[{"path": "dev/x"}]), "absolute"),
        (with_edits(deviceNodes=[{"path": "/dev/x", "type": "d"}]), "type"),
        (with_edits(deviceNodes=[{"path": "/dev/x", "permissions": "rx"}]), "permissions"),
        (with_edits(mounts=[{"hostPath": "", "containerPath": "/x"}]), "hostPath"),
        (with_edits(hooks=[{"hookName": "later", "path": "/x"}]), "later"),
        (with_edits(hooks=[{"hookName": "prestart", "path": "x"}]), "absolute"),
        (with_edits(hooks=[{"hookName": "prestart", "path": "/x", "timeout": 0}]), "timeout"),
        (with_edits(intelRdt={"closID": "../x"}), "closID"),
        (with_edits(additionalGids=[-1]), ">= 0"),
    ],
)
def test_what_cannot_be_used_is_refused(bad: object, words: str) -> None:
    with pytest.raises(ConfigError, match=r"v.json") as refusal:
        parse_cdi_spec(bad, "v.json")
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("version", "changes"),
    [
        ("0.3.0", {"containerEdits": {"mounts": [{"hostPath": "/a", "containerPath": "/a", "type": "x"}]}}),
        ("0.4.0", {"containerEdits": {"deviceNodes": [{"path": "/a", "hostPath": "/b"}]}}),
        ("0.4.0", {}),
        ("0.5.0", {"annotations": {"a": "b"}}),
        ("0.5.0", {"kind": "vendor.com/gpu.big"}),
        ("0.6.0", {"containerEdits": {"additionalGids": [1]}}),
        ("0.6.0", {"containerEdits": {"intelRdt": {}}}),
        ("1.0.0", {"containerEdits": {"netDevices": [{"hostInterfaceName": "a", "name": "b"}]}}),
        ("1.0.0", {"containerEdits": {"intelRdt": {"enableMonitoring": True}}}),
    ],
)  # fmt: skip
def test_fields_younger_than_the_files_version_are_refused(
    version: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=f"this is {version}"):
        parse_cdi_spec(document(cdiVersion=version, **changes), "v.json")
    parse_cdi_spec(document(cdiVersion="1.1.0", **changes), "v.json")


@pytest.mark.parametrize("name", ["vendor.com/gpu=0", "a/b=c", "v/c=a:b.c-d_e"])
def test_qualified_names(name: str) -> None:
    assert is_qualified_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "gpu", "vendor.com/gpu", "vendor.com/gpu=", "/gpu=0", "v/=0", "v/c=a\n", "v/c=../x"],
)
def test_other_names(name: str) -> None:
    assert not is_qualified_name(name)
