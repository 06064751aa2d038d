import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.errors import InvalidArgumentError
from cri_shim.oci.spec.seccomp import parse_kernel, parse_profile, resolve_profile


def resolve(document: dict[str, Any], *caps: str, arch: str = "x86_64") -> dict[str, Any]:
    profile = parse_profile(json.dumps(document).encode(), name="p.json")
    return resolve_profile(profile, arch=arch, kernel=(5, 10), capabilities=caps)


def names(document: dict[str, Any], *caps: str, arch: str = "x86_64") -> list[str]:
    resolved = resolve(document, *caps, arch=arch)
    return [name for rule in resolved["syscalls"] for name in rule["names"]]


def rule(name: str, **fields: Any) -> dict[str, Any]:
    return {"names": [name], "action": "SCMP_ACT_ALLOW", **fields}


def test_runtime_spec_form_passes_unchanged() -> None:
    document = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": ["SCMP_ARCH_X86_64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "listenerPath": "/run/agent.sock",
        "listenerMetadata": "m",
        "syscalls": [
            rule("read"),
            rule(
                "clone",
                errnoRet=1,
                args=[{"index": 0, "value": 2**64 - 1, "valueTwo": 5, "op": "SCMP_CMP_MASKED_EQ"}],
            ),
        ],
    }
    assert resolve(document) == document


def test_docker_form_is_resolved_for_the_container() -> None:
    document = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": None},
        ],
        "syscalls": [
            {"name": "one", "action": "SCMP_ACT_ALLOW", "args": None, "comment": "old form"},
            rule("admin", includes={"caps": ["CAP_SYS_ADMIN"]}),
            rule("two_caps", includes={"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}),
            rule("not_admin", excludes={"caps": ["CAP_SYS_ADMIN"]}),
            rule("arm", includes={"arches": ["arm64"]}),
            rule("intel", includes={"arches": ["amd64"]}),
            rule("not_intel", excludes={"arches": ["amd64"]}),
            rule("new", includes={"minKernel": "5.11"}),
            rule("old", includes={"minKernel": "4.8"}, excludes={"minKernel": "5.11"}),
        ],
    }
    assert names(document) == ["one", "not_admin", "intel", "old"]
    assert names(document, "SYS_ADMIN") == ["one", "admin", "intel", "old"]
    assert "two_caps" in names(document, "SYS_ADMIN", "BPF")
    assert names(document, arch="aarch64") == ["one", "not_admin", "arm", "not_intel", "old"]
    assert resolve(document)["architectures"] == ["SCMP_ARCH_X86_64"]
    assert resolve(document, arch="aarch64")["architectures"] == [
        "SCMP_ARCH_AARCH64",
        "SCMP_ARCH_ARM",
    ]
    assert "architectures" not in resolve(document, arch="riscv64")
    assert "architectures" not in resolve(document, arch="vax")


def test_same_profile_for_the_same_container_is_resolved_once() -> None:
    profile = parse_profile(b'{"defaultAction": "SCMP_ACT_LOG"}', name="p")
    facts: dict[str, Any] = {"arch": "x86_64", "kernel": (6, 1), "capabilities": ("KILL",)}
    assert resolve_profile(profile, **facts) is resolve_profile(profile, **facts)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b'{"defaultAction": 5}',
        b'{"defaultAction": "X", "syscalls": [{"action": "A"}]}',
        b'{"defaultAction": "X", "syscalls": [{"action": "A", "name": "a", "names": ["b"]}]}',
        b'{"defaultAction": "X", "architectures": ["a"], "archMap": [{"architecture": "a"}]}',
        b'{"defaultAction": "X", "syscalls": [{"action": "A", "name": "a", '
        b'"includes": {"minKernel": "new"}}]}',
        b'{"defaultAction": "SCMP_ACT_ALLOWED"}',
        b'{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": -1}',
        b'{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["x86_64"]}',
        b'{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "deny", "name": "a"}]}',
        *(
            b'{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_LOG", '
            b'"name": "a", "args": [%b]}]}' % argument
            for argument in (
                b'{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}',
                b'{"index": 0, "value": -1, "op": "SCMP_CMP_EQ"}',
                b'{"index": 0, "value": 18446744073709551616, "op": "SCMP_CMP_EQ"}',
                b'{"index": 0, "value": 0, "op": "=="}',
            )
        ),
    ],
)
def test_what_is_no_profile_is_refused(document: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="seccomp"):
        parse_profile(document, name="p.json")


@given(st.binary(max_size=200))
def test_any_bytes_give_a_profile_or_a_refusal(document: bytes) -> None:
    try:
        parse_profile(document, name="p.json")
    except InvalidArgumentError:
        pass


def test_kernel_versions_compare_as_numbers() -> None:
    assert parse_kernel("4.8") < parse_kernel("4.10") < parse_kernel("10.0")
