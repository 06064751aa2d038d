import pytest

from cri_shim.config.values import CAPABILITIES
from cri_shim.oci.spec.seccomp import resolve_profile
from cri_shim.oci.spec.seccomp_table import (
    ALWAYS,
    CONTAINER,
    ON_ARCHITECTURE,
    PAUSE,
    PAUSE_ALWAYS,
    WITH_CAPABILITY,
)
from tests.unit.oci.spec.cases import DEFAULT_CAPABILITIES

DANGEROUS = {
    *("mount", "umount2", "unshare", "setns", "bpf", "perf_event_open", "init_module", "reboot"),
    *("kexec_load", "keyctl", "add_key", "request_key", "io_uring_setup", "userfaultfd", "uselib"),
    *("open_by_handle_at", "swapon", "settimeofday", "iopl", "sethostname", "fsopen", "acct"),
}


def rules(
    *capabilities: str, arch: str = "x86_64", kernel: tuple[int, int] = (6, 1)
) -> dict[str, list[object]]:
    """What is allowed: the conditions by name, None for a call allowed as it is."""
    made: dict[str, list[object]] = {}
    resolved = resolve_profile(CONTAINER, arch=arch, kernel=kernel, capabilities=capabilities)
    for rule in resolved["syscalls"]:
        for name in rule["names"]:
            if rule["action"] == "SCMP_ACT_ALLOW":
                made.setdefault(name, []).append(rule.get("args"))
    return made


def test_call_stands_in_one_group_only() -> None:
    names = " ".join(ALWAYS.values()).split()
    assert len(names) == len(set(names))
    assert not set(names) & set(" ".join(ON_ARCHITECTURE.values()).split())
    gated = {name for text in WITH_CAPABILITY.values() for name in text.split()}
    assert not gated & set(names)


def test_gates_are_capabilities() -> None:
    assert set(WITH_CAPABILITY) <= set(CAPABILITIES)


def test_ordinary_container_can_do_nothing_dangerous() -> None:
    assert not DANGEROUS & rules(*DEFAULT_CAPABILITIES).keys()


def test_ordinary_container_can_do_the_ordinary() -> None:
    assert {"read", "openat", "execve", "futex", "epoll_wait", "statx", "chroot"} <= {
        name for name, conditions in rules(*DEFAULT_CAPABILITIES).items() if conditions == [None]
    }


@pytest.mark.parametrize("capability", sorted(WITH_CAPABILITY))
def test_capability_opens_its_calls(capability: str) -> None:
    opened = set(WITH_CAPABILITY[capability].split())
    allowed = {name for name, conditions in rules(capability).items() if conditions == [None]}
    assert opened <= allowed


def test_clone_makes_no_namespaces_and_clone3_does_not_exist_without_sys_admin() -> None:
    (conditions,) = rules()["clone"]
    assert conditions == [{"index": 0, "value": 0x7E020000, "op": "SCMP_CMP_MASKED_EQ"}]
    resolved = resolve_profile(CONTAINER, arch="x86_64", kernel=(6, 1), capabilities=())
    assert {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38} in resolved["syscalls"]
    assert rules("SYS_ADMIN")["clone3"] == [None]
    assert rules("SYS_ADMIN")["clone"] == [None]


def test_clone_flags_are_the_second_argument_on_s390x() -> None:
    (conditions,) = rules(arch="s390x")["clone"]
    assert isinstance(conditions, list)
    assert conditions[0]["index"] == 1


def test_tracing_needs_a_capability_on_kernels_where_it_escapes_the_filter() -> None:
    assert rules(kernel=(4, 8))["ptrace"] == [None]
    assert "ptrace" not in rules(kernel=(4, 7))
    assert rules("SYS_PTRACE", kernel=(4, 7))["ptrace"] == [None]


def test_socket_families_are_compared_so_that_no_high_bit_slips_through() -> None:
    def allowed(family: int) -> bool:
        checks = {
            "SCMP_CMP_LT": lambda value: family < value,
            "SCMP_CMP_EQ": lambda value: family == value,
        }
        return any(
            checks[condition["op"]](condition["value"])
            for conditions in rules()["socket"]
            for condition in conditions  # type: ignore[attr-defined]
        )

    assert [family for family in range(64) if not allowed(family)] == [38, 40, *range(46, 64)]
    assert not any(allowed(family | bit << 32) for family in (2, 38, 40) for bit in (1, 2**31))


def test_personality_is_limited_to_harmless_ones() -> None:
    values = {
        condition["value"]
        for conditions in rules()["personality"]
        for condition in conditions  # type: ignore[attr-defined]
    }
    assert values == {0, 8, 0x20000, 0x20008, 0xFFFFFFFF}
    assert 0x0040000 not in values, "ADDR_NO_RANDOMIZE"


@pytest.mark.parametrize(
    ("arch", "architectures"),
    [
        ("x86_64", ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]),
        ("aarch64", ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
        ("s390x", ["SCMP_ARCH_S390X", "SCMP_ARCH_S390"]),
        ("riscv64", ["SCMP_ARCH_RISCV64"]),
    ],
)
def test_machine_runs_its_32_bit_form_too_but_a_pause_does_not(
    arch: str, architectures: list[str]
) -> None:
    of_container = resolve_profile(CONTAINER, arch=arch, kernel=(6, 1), capabilities=())
    assert of_container["architectures"] == architectures
    of_pause = resolve_profile(PAUSE, arch=arch, kernel=(6, 1), capabilities=())
    assert of_pause["architectures"] == architectures[:1]


def test_calls_of_an_architecture_are_for_it_alone() -> None:
    assert "arch_prctl" in rules()
    assert "arch_prctl" not in rules(arch="aarch64")
    assert "cacheflush" in rules(arch="aarch64")


def test_pause_may_do_less_than_a_container() -> None:
    allowed = set(PAUSE_ALWAYS.split())
    assert allowed <= set(" ".join([*ALWAYS.values(), *ON_ARCHITECTURE.values()]).split())
    assert not {"socket", "connect", "ptrace", "unlink", "mkdir", "chown"} & allowed


def test_calls_of_newer_kernels_are_decided_one_way_or_the_other() -> None:
    allowed = rules(*DEFAULT_CAPABILITIES).keys()
    assert {"file_getattr", "file_setattr", "lsm_get_self_attr", "mseal", "setxattrat"} <= allowed
    assert not {"open_tree_attr", "io_uring_enter", "quotactl_fd", "kexec_file_load"} & allowed
    assert {"open_tree_attr"} <= rules("SYS_ADMIN").keys()
    assert "io_uring_setup" not in rules(*CAPABILITIES), "no capability opens it"
