from dataclasses import replace

import pytest

from cri_shim._pb.cri.v1 import api_pb2
from cri_shim._pb.cri.v1.api_pb2 import (
    IDMapping,
    LinuxSandboxSecurityContext,
    NamespaceOption,
    PodSandboxConfig,
    SecurityProfile,
    SELinuxOption,
    UserNamespace,
    WindowsPodSandboxConfig,
)
from cri_shim.errors import InvalidArgumentError
from cri_shim.oci.spec.inputs import ImageDefaults
from cri_shim.oci.spec.sandbox import check_sandbox_config, checked_hostname, sandbox_sysctls
from cri_shim.oci.spec.selinux import Labels
from tests.unit.oci.spec.cases import (
    GOLDEN_CGROUP,
    RUNC,
    pod_config,
    sandbox_facts,
    sandbox_spec,
)

NODE = GOLDEN_CGROUP.node


def test_pause_has_no_rights_whatever_the_pod_asks() -> None:
    context = LinuxSandboxSecurityContext(privileged=True)
    process = sandbox_spec(pod_config(security_context=context))["process"]
    assert process["capabilities"] == {"bounding": [], "effective": [], "permitted": []}
    assert process["noNewPrivileges"] is True


def test_pause_is_the_last_to_be_killed_as_far_as_the_server_may_say_so() -> None:
    assert sandbox_spec(pod_config())["process"]["oomScoreAdj"] == -998
    node = replace(NODE, min_oom_score_adj=0)
    assert sandbox_spec(pod_config(), node=node)["process"]["oomScoreAdj"] == 0


def test_config_without_a_linux_part_gives_a_whole_spec() -> None:
    spec = sandbox_spec(PodSandboxConfig())
    assert spec["hostname"] == "web"
    assert "sysctl" not in spec["linux"]


def test_named_apparmor_profile_confines_the_pause_where_there_is_apparmor() -> None:
    wanted = SecurityProfile(profile_type=SecurityProfile.Localhost, localhost_ref="mine")
    config = pod_config(security_context=LinuxSandboxSecurityContext(apparmor=wanted))
    node = replace(NODE, apparmor_profiles=frozenset({"mine"}))
    assert sandbox_spec(config, node=node)["process"]["apparmorProfile"] == "mine"
    with pytest.raises(InvalidArgumentError, match="no AppArmor"):
        sandbox_spec(config)


def test_network_parameters_are_not_the_runtimes_business() -> None:
    config = pod_config(sysctls={"net.ipv4.ip_forward": "1", "kernel.sem": "1 2 3 4"})
    assert sandbox_spec(config)["linux"]["sysctl"] == {"kernel.sem": "1 2 3 4"}
    assert sandbox_sysctls(config, node=NODE, handler=RUNC).network == {"net.ipv4.ip_forward": "1"}


def test_parameter_of_a_shared_namespace_is_refused_before_anything_is_built() -> None:
    context = LinuxSandboxSecurityContext(namespace_options=NamespaceOption(network=api_pb2.NODE))
    config = pod_config(security_context=context, sysctls={"net.ipv4.ip_forward": "1"})
    with pytest.raises(InvalidArgumentError, match="sysctls"):
        sandbox_spec(config, sandbox=sandbox_facts(GOLDEN_CGROUP, netns_path=None))


@pytest.mark.parametrize(
    ("config", "error"),
    [
        (PodSandboxConfig(windows=WindowsPodSandboxConfig()), InvalidArgumentError),
        (
            pod_config(
                security_context=LinuxSandboxSecurityContext(
                    namespace_options=NamespaceOption(pid=api_pb2.TARGET)
                )
            ),
            InvalidArgumentError,
        ),
        (
            pod_config(
                security_context=LinuxSandboxSecurityContext(
                    selinux_options=SELinuxOption(level="top secret")
                )
            ),
            InvalidArgumentError,
        ),
    ],
)
def test_what_no_sandbox_could_have_is_refused(
    config: PodSandboxConfig, error: type[Exception]
) -> None:
    with pytest.raises(error):
        check_sandbox_config(config, RUNC, replace(NODE, selinux_enabled=True))


def test_image_without_a_command_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="'empty' has no command"):
        sandbox_spec(pod_config(), image=ImageDefaults(name="empty"))


@pytest.mark.parametrize(
    "hostname",
    [
        *("h" * 65, "ä" * 33, "web\n10.0.0.1 evil", "web\x7f", "web\0", "web\x85", "a b", "a\tb"),
        *("a\u2028b", "#a", f"{'h' * 60}.abcd"),
    ],
)
def test_host_name_that_the_kernel_or_the_files_do_not_take_is_refused(hostname: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"config\.hostname"):
        checked_hostname(hostname)


@pytest.mark.parametrize(
    "hostname",
    ["h" * 64, f"{'h' * 60}.abc", "Web-1.shop", "a_b", "-a", "a-", "a..b", "a.", "ä" * 32, "a:b"],
)
def test_host_name_is_whatever_the_kernel_and_the_files_take(hostname: str) -> None:
    assert checked_hostname(hostname) == hostname


@pytest.mark.parametrize("field", ["overhead", "resources"])
def test_size_that_no_pod_can_have_is_refused_by_its_field(field: str) -> None:
    config = pod_config()
    getattr(config.linux, field).cpu_period = 1
    with pytest.raises(InvalidArgumentError, match=rf"linux\.{field}\.cpu_period"):
        check_sandbox_config(config, RUNC, NODE)
    getattr(config.linux, field).cpu_period = 100_000
    check_sandbox_config(config, RUNC, NODE)


def test_size_of_a_pod_is_not_that_of_its_pause_container() -> None:
    config = pod_config()
    config.linux.resources.memory_limit_in_bytes = 1 << 30
    config.linux.resources.cpu_shares = 2
    assert sandbox_spec(config)["linux"]["resources"] == {
        "devices": [{"allow": False, "access": "rwm"}]
    }


def test_pause_process_has_the_weight_of_any_since_busy_containers_would_starve_its_creation() -> (
    None
):
    assert "cpu" not in sandbox_spec(pod_config())["linux"]["resources"]


def test_user_that_the_pods_namespace_does_not_know_is_refused_before_anything_is_built() -> None:
    mapping = IDMapping(host_id=200_000, length=1000)
    users = UserNamespace(mode=api_pb2.POD, uids=[mapping], gids=[mapping])
    for field in ("run_as_user", "run_as_group"):
        context = LinuxSandboxSecurityContext(
            namespace_options=NamespaceOption(userns_options=users)
        )
        getattr(context, field).value = 1000
        with pytest.raises(InvalidArgumentError, match="is not mapped"):
            check_sandbox_config(
                pod_config(security_context=context), replace(RUNC, user_namespaces=True), NODE
            )


def test_labels_of_the_pod_reach_its_process_and_mounts() -> None:
    labels = Labels("u:r:container_t:s0:c1,c2", "u:object_r:container_file_t:s0:c1,c2")
    facts = sandbox_facts(GOLDEN_CGROUP, pause_pid=None, labels=labels)
    spec = sandbox_spec(pod_config(), sandbox=facts)
    assert spec["process"]["selinuxLabel"] == labels.process
    assert spec["linux"]["mountLabel"] == labels.files
    assert "selinuxLabel" not in sandbox_spec(pod_config())["process"]
