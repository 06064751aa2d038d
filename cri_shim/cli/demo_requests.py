"""What the demo asks the daemon for: one small pod, as careful as a good pod is (pure).

Its container is nobody's, has no capabilities and can't gain any, and runs under the default seccomp profile. It greets
on stdout, complains on stderr, serves its greeting by HTTP, and says goodbye when it is asked to stop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cri_shim._pb.cri.v1 import api_pb2 as api

if TYPE_CHECKING:
    from pathlib import Path

IMAGE: Final = "localhost/cri-shim-demo:1"
NAMESPACE: Final = "cri-shim-demo"
LOG_NAME: Final = "hello.log"
PORT: Final = 8080
INTERFACE: Final = "eth0"
NOBODY: Final = 65534
GOODBYE: Final = "goodbye"

# As PID 1 a shell has no default action for TERM: without the trap a stop would take its whole grace period.
SCRIPT: Final = f"""
trap 'echo {GOODBYE}; exit 0' TERM
mkdir /tmp/www && echo "$GREETING" > /tmp/www/index.html || exit 1
httpd -f -p {PORT} -h /tmp/www &
echo "$GREETING"
echo "$COMPLAINT" >&2
wait
"""

_DEFAULT_SECCOMP: Final = api.SecurityProfile(profile_type=api.SecurityProfile.RuntimeDefault)


def greeting(pod: str) -> str:
    """What the container writes to stdout, and serves."""
    return f"hello from pod {pod}"


def complaint(pod: str) -> str:
    """What it writes to stderr."""
    return f"and {pod} complains on stderr"


def labels(pod: str) -> dict[str, str]:
    """Labels by which the pod is found again; `app` alone finds those of every demo.

    The others are the kubelet's own, from which crictl reads the pod of a container.
    """
    return {
        "app": NAMESPACE,
        "demo": pod,
        "io.kubernetes.pod.name": pod,
        "io.kubernetes.pod.namespace": NAMESPACE,
        "io.kubernetes.pod.uid": pod,
    }


def pod_config(pod: str, log_dir: Path) -> api.PodSandboxConfig:
    """The sandbox: on the default network, with a host name of its own."""
    return api.PodSandboxConfig(
        metadata=api.PodSandboxMetadata(name=pod, namespace=NAMESPACE, uid=pod),
        hostname=pod,
        log_directory=str(log_dir),
        labels=labels(pod),
        linux=api.LinuxPodSandboxConfig(
            security_context=api.LinuxSandboxSecurityContext(seccomp=_DEFAULT_SECCOMP)
        ),
    )


def container_config(pod: str) -> api.ContainerConfig:
    """The one container."""
    return api.ContainerConfig(
        metadata=api.ContainerMetadata(name="hello"),
        image=api.ImageSpec(image=IMAGE),
        command=["sh", "-c", SCRIPT],
        envs=[
            api.KeyValue(key="GREETING", value=greeting(pod).encode()),
            api.KeyValue(key="COMPLAINT", value=complaint(pod).encode()),
        ],
        log_path=LOG_NAME,
        labels=labels(pod),
        linux=api.LinuxContainerConfig(
            security_context=api.LinuxContainerSecurityContext(
                run_as_user=api.Int64Value(value=NOBODY),
                run_as_group=api.Int64Value(value=NOBODY),
                capabilities=api.Capability(drop_capabilities=["ALL"]),
                no_new_privs=True,
                seccomp=_DEFAULT_SECCOMP,
            )
        ),
    )
