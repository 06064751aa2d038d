from dataclasses import replace

import pytest

from cri_shim.config.model import HandlerKind
from cri_shim.oci.spec.annotations import build_container_annotations, build_sandbox_annotations
from cri_shim.oci.spec.inputs import HandlerFacts
from tests.unit.oci.spec.cases import GOLDEN_CGROUP, RUNC, SANDBOX_ID, sandbox_facts

WIDE_OPEN = HandlerFacts("wide", pod_annotations=("*",), container_annotations=("*",))
KATA = HandlerFacts(
    "kata", HandlerKind.VM, pod_annotations=("io.katacontainers.*", "example.com/*")
)


def of_container(
    requested: dict[str, str], handler: HandlerFacts, pod: dict[str, str] | None = None
) -> dict[str, str]:
    return build_container_annotations(
        requested,
        sandbox=replace(sandbox_facts(GOLDEN_CGROUP), annotations=pod or {}),
        handler=handler,
        container_name="app",
        image_name="image",
    )


def of_sandbox(pod: dict[str, str], handler: HandlerFacts) -> dict[str, str]:
    return build_sandbox_annotations(
        replace(sandbox_facts(GOLDEN_CGROUP), annotations=pod), handler
    )


def test_only_ours_are_set_without_an_allow_list() -> None:
    assert set(of_container({"a": "b"}, RUNC, {"c": "d"})) == {
        f"io.kubernetes.cri.{name}"
        for name in (
            *("container-type", "container-name", "image-name", "sandbox-id"),
            *("sandbox-name", "sandbox-namespace", "sandbox-uid"),
        )
    }
    assert of_sandbox({"a": "b"}, RUNC)["io.kubernetes.cri.container-type"] == "sandbox"
    assert "a" not in of_sandbox({"a": "b"}, RUNC)


def test_allow_list_lets_matching_keys_through_and_the_containers_win() -> None:
    made = of_container({"x/a": "own"}, WIDE_OPEN, {"x/a": "pod", "x/b": "pod"})
    assert made["x/a"] == "own"
    assert made["x/b"] == "pod"
    assert of_container({"x/a": "own"}, KATA).get("x/a") is None


def test_cve_2024_3154_systemd_property_never_passes_however_wide_the_list() -> None:
    evil = {"org.systemd.property.ExecStart": "'/bin/evil'"}
    assert not evil.keys() & of_container(evil, WIDE_OPEN, evil).keys()
    assert not evil.keys() & of_sandbox(evil, WIDE_OPEN).keys()


@pytest.mark.parametrize(
    "key",
    [
        "run.oci.hooks.stdout",
        "run.oci.systemd.subgroup",
        "run.oci.seccomp.receiver",
        "run.oci.pidfd_receiver",
        "org.systemd.property.ExecStart",
    ],
)
def test_orders_to_the_runtime_about_the_node_never_pass(key: str) -> None:
    evil = {key: "/etc/cron.d/evil"}
    by_name = HandlerFacts("named", pod_annotations=(key,), container_annotations=(key,))
    assert not evil.keys() & of_container(evil, by_name, evil).keys()
    assert not evil.keys() & of_sandbox(evil, by_name).keys()
    assert not evil.keys() & of_container(evil, WIDE_OPEN, evil).keys()
    assert not evil.keys() & of_sandbox(evil, WIDE_OPEN).keys()


@pytest.mark.parametrize(
    "key",
    [
        *("run.oci.handler", "run.oci.keep_original_groups", "run.oci.invented_tomorrow"),
        *("module.wasm.image/variant", "org.criu.config", "bundle"),
    ],
)
def test_an_order_to_a_runtime_passes_only_where_it_is_named_whole(key: str) -> None:
    said = {key: "1"}
    wide = HandlerFacts("wide", container_annotations=("*", f"{key[:8]}*"))
    assert key not in of_container(said, wide)
    named = HandlerFacts("named", container_annotations=("*", key))
    assert of_container(said, named)[key] == "1"


def test_what_a_runtime_itself_calls_unsafe_passes_only_where_it_is_named_whole() -> None:
    said = {"org.example.order.x": "1", "org.example.fine": "2"}
    handler = replace(WIDE_OPEN, unsafe_annotations=("org.example.order.",))
    made = of_container(said, handler)
    assert said.keys() & made.keys() == {"org.example.fine"}
    handler = replace(handler, container_annotations=("*", "org.example.order.x"))
    assert said.items() <= of_container(said, handler).items()


@pytest.mark.parametrize(
    "namespace", ["io.katacontainers.", "com.github.containers.virtcontainers.", "dev.gvisor."]
)
def test_orders_to_a_sandbox_pass_only_by_a_pattern_of_their_namespace(namespace: str) -> None:
    said = {f"{namespace}config": "1"}
    assert not said.keys() & of_sandbox(said, WIDE_OPEN).keys()
    assert not said.keys() & of_sandbox(said, replace(RUNC, pod_annotations=("io.*",))).keys()
    allowed = replace(RUNC, pod_annotations=(f"{namespace}*",))
    assert said.items() <= of_sandbox(said, allowed).items()


def test_our_own_keys_can_not_be_forged() -> None:
    forged = {
        "io.kubernetes.cri.sandbox-id": "forged",
        "io.kubernetes.cri.unknown": "forged",
        "io.kubernetes.sandbox.id": "forged",
        "io.kubernetes.docker.type": "forged",
    }
    for made in (of_container(forged, WIDE_OPEN, forged), of_sandbox(forged, WIDE_OPEN)):
        assert "forged" not in made.values()


def test_virtual_machine_gets_the_docker_style_pair_and_its_size_reaches_the_pause_only() -> None:
    pod = {"io.katacontainers.config.hypervisor.default_vcpus": "2", "example.com/x": "y"}
    sandbox = of_sandbox(pod, KATA)
    assert sandbox["io.kubernetes.docker.type"] == "podsandbox"
    assert sandbox["io.kubernetes.sandbox.id"] == SANDBOX_ID
    assert sandbox.items() >= pod.items()
    container = of_container({}, KATA, pod)
    assert container["io.kubernetes.docker.type"] == "container"
    assert container["io.kubernetes.sandbox.id"] == SANDBOX_ID
    assert container["example.com/x"] == "y"
    assert not any(key.startswith("io.katacontainers") for key in container)
