"""The demo's requests: one small, restricted pod. Pure.

Its container runs as nobody, without capabilities, with no_new_privs and the default seccomp profile. It writes a line
to stdout and one to stderr, serves the former by HTTP, and writes a last line on SIGTERM.
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

# The kernel ignores SIGTERM for PID 1 without a handler: without the trap a stop would take the whole grace period.
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
    """The line that the container writes to stdout and serves."""
    return f"hello from pod {pod}"


def complaint(pod: str) -> str:
    """The line that the container writes to stderr."""
    return f"and {pod} complains on stderr"


def labels(pod: str) -> dict[str, str]:
    """Labels to find the demo's pod (`demo`), and the pods of all demos (`app`).

    The others are the kubelet's, from which crictl shows the pod of a container.
    """
    return {
        "app": NAMESPACE,
        "demo": pod,
        "io.kubernetes.pod.name": pod,
        "io.kubernetes.pod.namespace": NAMESPACE,
        "io.kubernetes.pod.uid": pod,
    }


def pod_config(pod: str, log_dir: Path) -> api.PodSandboxConfig:
    """The sandbox: on the default network, with its own host name."""
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
    """The pod's only container."""
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
