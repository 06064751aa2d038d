"""The demo's proofs: what the daemon says of the pod is held against the log file, the pod's inside, and the network.

Each returns what there is to show, and raises CriShimError saying what did not match.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import time
from typing import TYPE_CHECKING, Final

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.cli import demo_requests as requests
from cri_shim.cli.demo_pod import CALL_TIMEOUT_S
from cri_shim.cli.log_lines import Written, parse_log
from cri_shim.cli.progress import size_text
from cri_shim.errors import CriShimError, DeadlineError, WrongStateError
from cri_shim.rpc.client import errors_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cri_shim.cli.demo_pod import DemoPod

WAIT_S: Final = 10.0
"""For a line to reach the log, and for the pod's web server to listen."""
EXEC_TIMEOUT_S: Final = 10
FETCH_TIMEOUT_S: Final = 5.0
MAX_PAGE_BYTES: Final = 4096
_POLL_S: Final = 0.02
_ADDRESS: Final = re.compile(r"\binet6? (\S+/\d+)")


class Proofs:
    """Looks at a running demo pod."""

    def __init__(self, pod: DemoPod) -> None:
        self._pod = pod
        self.check_interrupted: Callable[[], None] = lambda: None
        """Called while something is awaited; what it raises ends the wait."""

    def addresses(self, status: api.PodSandboxStatus) -> list[str]:
        """The ready sandbox's addresses, all of which can be a pod's."""
        if status.state != api.SANDBOX_READY:
            raise WrongStateError(f"sandbox {status.id} is not ready right after its start")
        ips = [status.network.ip, *(more.ip for more in status.network.additional_ips)]
        for ip in ips:
            if not ip:
                raise CriShimError("the network gave the pod no IP address")
            address = ipaddress.ip_address(ip)
            if address.is_loopback or address.is_unspecified or address.is_multicast:
                raise CriShimError(f"the network gave the pod {ip}, which no pod can have")
        return ips

    def log(self) -> list[str]:
        """The lines of the log file, once all that the container wrote is in it, in CRI's form, word for word."""
        name = self._pod.name
        expected = {
            Written("stdout", requests.greeting(name)),
            Written("stderr", requests.complaint(name)),
        }
        data = b""

        def is_complete() -> bool:
            nonlocal data
            data = self._log_bytes()
            written = parse_log(data)
            if len(written) < len(expected):
                self.require_running()
                return False
            if len(written) > len(expected) or set(written) != expected:
                raise CriShimError(f"the log holds other lines than the container wrote: {written}")
            return True

        self._wait_for(is_complete, f"its lines did not reach {self._pod.log_file}")
        return data.decode().splitlines()

    def inside(self, ips: Sequence[str]) -> tuple[str, list[str]]:
        """Host name and addresses as a command in the container sees them: they must be the pod's."""
        said = self._exec("sh", "-c", f"hostname && id -u && ip addr show dev {requests.INTERFACE}")
        hostname, uid, shown = (*said.split("\n", 2), "", "")[:3]
        if hostname != self._pod.name or uid != str(requests.NOBODY):
            raise CriShimError(
                f"it sees host name {hostname!r} and user {uid!r}, "
                f"not {self._pod.name!r} and {str(requests.NOBODY)!r}"
            )
        found = {str(ipaddress.ip_interface(a).ip): a for a in _ADDRESS.findall(shown)}
        if missing := [ip for ip in ips if ip not in found]:
            raise CriShimError(
                f"the daemon says that the pod has {', '.join(missing)}, but its "
                f"{requests.INTERFACE} has {', '.join(found.values()) or 'no address'}"
            )
        return hostname, [found[ip] for ip in ips]

    def page(self, ip: str) -> tuple[str, str]:
        """The URL of the pod's page and what it answers, asked from this node as the kubelet's probes ask."""
        url = f"http://{f'[{ip}]' if ':' in ip else ip}:{requests.PORT}/"
        answer = ""

        def is_served() -> bool:
            nonlocal answer
            try:
                answer = _fetch(ip)
            except ConnectionRefusedError:
                self.require_running()
                return False  # not listening yet
            except (OSError, http.client.HTTPException) as error:
                raise CriShimError(f"this node got no answer from {url}: {error}") from error
            return True

        self._wait_for(is_served, f"nothing listens at {url}")
        if answer != requests.greeting(self._pod.name):
            raise CriShimError(f"{url} answered {answer[:200]!r}, which this pod does not say")
        return url, answer

    def usage(self) -> str:
        """What the container uses, by its cgroup and its writable layer."""
        with errors_of("cannot read the container's statistics"):
            request = api.ContainerStatsRequest(container_id=self._pod.container_id)
            stats = self._pod.client.runtime.ContainerStats(request, timeout=CALL_TIMEOUT_S).stats
        shown = []
        if stats.cpu.HasField("usage_core_nano_seconds"):
            cpu_ns = stats.cpu.usage_core_nano_seconds.value
            if cpu_ns == 0:
                raise CriShimError("the container runs, but is said to have used no CPU")
            shown.append(f"CPU {cpu_ns / 1e6:.1f} ms")
        if stats.memory.HasField("usage_bytes"):
            used = stats.memory.usage_bytes.value
            if used == 0:
                raise CriShimError("the container runs, but is said to use no memory")
            shown.append(f"memory {size_text(used)}")
        if not shown:
            raise CriShimError("neither CPU nor memory of the container are accounted")
        layer = stats.writable_layer
        if layer.used_bytes.value == 0:
            raise CriShimError(
                "the container wrote a file, but its writable layer is said to be empty"
            )
        return ", ".join([*shown, f"disk {size_text(layer.used_bytes.value)}"])

    def graceful_end(self) -> None:
        """The container, asked to stop, must have said goodbye and left with 0."""
        status = self._pod.container_status()
        if status.state != api.CONTAINER_EXITED or status.exit_code != 0:
            raise CriShimError(
                f"the container was stopped and is said to have ended with exit code {status.exit_code} "
                f"({status.reason}), but it leaves with 0 when it is asked to"
            )
        if Written("stdout", requests.GOODBYE) not in parse_log(self._log_bytes()):
            raise CriShimError(f"the container's last line is not in {self._pod.log_file}")

    def require_running(self) -> None:
        """Raise WrongStateError with the container's last words if it has ended."""
        status = self._pod.container_status()
        if status.state == api.CONTAINER_RUNNING:
            return
        said = " / ".join(line.text for line in parse_log(self._log_bytes())[-3:])
        why = " ".join(filter(None, (status.reason, status.message)))
        raise WrongStateError(
            f"container {status.id} ended with exit code {status.exit_code} ({why}); "
            f"it wrote: {said or 'nothing'}"
        )

    def _exec(self, *command: str) -> str:
        with errors_of("cannot run a command in the container"):
            answer = self._pod.client.runtime.ExecSync(
                api.ExecSyncRequest(
                    container_id=self._pod.container_id, cmd=command, timeout=EXEC_TIMEOUT_S
                ),
                timeout=CALL_TIMEOUT_S,
            )
        if answer.exit_code != 0:
            said = answer.stderr.decode(errors="replace").strip()
            raise CriShimError(f"{command[-1]!r} ended with exit code {answer.exit_code}: {said}")
        return answer.stdout.decode(errors="replace")

    def _log_bytes(self) -> bytes:
        try:
            return self._pod.log_file.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise CriShimError(f"cannot read {self._pod.log_file}: {error.strerror}") from error

    def _wait_for(self, is_done: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not is_done():
            self.check_interrupted()
            if time.monotonic() > deadline:
                raise DeadlineError(f"{otherwise} within {WAIT_S:g} s")
            time.sleep(_POLL_S)


def _fetch(ip: str) -> str:
    # Not urllib: a proxy in the environment is for the internet, not for a pod of this node.
    connection = http.client.HTTPConnection(ip, requests.PORT, timeout=FETCH_TIMEOUT_S)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read(MAX_PAGE_BYTES).decode(errors="replace").strip()
    finally:
        connection.close()
