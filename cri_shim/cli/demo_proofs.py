"""Verifies the daemon's answers in the demo against the log file, the inside of the pod, and the network.

Each method returns what the demo shows, and raises CriShimError if something does not match.
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
"""Time for a line to reach the log, and for the pod's web server to listen."""
EXEC_TIMEOUT_S: Final = 10
FETCH_TIMEOUT_S: Final = 5.0
MAX_PAGE_BYTES: Final = 4096
_POLL_S: Final = 0.02
_ADDRESS: Final = re.compile(r"\binet6? (\S+/\d+)")


class Proofs:
    """The verifications of a running demo pod."""

    def __init__(self, pod: DemoPod) -> None:
        self._pod = pod
        self.check_interrupted: Callable[[], None] = lambda: None
        """Called repeatedly during a wait; an exception ends the wait."""

    def addresses(self, status: api.PodSandboxStatus) -> list[str]:
        """Verify that the sandbox is ready and has valid addresses. Returns them."""
        if status.state != api.SANDBOX_READY:
            raise WrongStateError(f"sandbox {status.id} is not ready right after its start")
        ips = [status.network.ip, *(more.ip for more in status.network.additional_ips)]
        for ip in ips:
            if not ip:
                raise CriShimError("the network gave the pod no IP address")
            address = ipaddress.ip_address(ip)
            if address.is_loopback or address.is_unspecified or address.is_multicast:
                raise CriShimError(
                    f"the network gave the pod the address {ip}, which is not usable for a pod"
                )
        return ips

    def log(self) -> list[str]:
        """Verify that the log file has exactly the lines that the container wrote, in CRI's format.

        Returns the lines.
        """
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
                raise CriShimError(f"the log has other lines than the container wrote: {written}")
            return True

        self._wait_for(is_complete, f"its lines did not reach {self._pod.log_file}")
        return data.decode().splitlines()

    def inside(self, ips: Sequence[str]) -> tuple[str, list[str]]:
        """Verify host name, user and addresses as a command in the container sees them. Returns name and addresses."""
        said = self._exec("sh", "-c", f"hostname && id -u && ip addr show dev {requests.INTERFACE}")
        hostname, uid, shown = (*said.split("\n", 2), "", "")[:3]
        if hostname != self._pod.name or uid != str(requests.NOBODY):
            raise CriShimError(
                f"a command in the container sees host name {hostname!r} and user {uid!r} "
                f"instead of {self._pod.name!r} and {str(requests.NOBODY)!r}"
            )
        found = {str(ipaddress.ip_interface(a).ip): a for a in _ADDRESS.findall(shown)}
        if missing := [ip for ip in ips if ip not in found]:
            raise CriShimError(
                f"according to the daemon the pod has {', '.join(missing)}, but its "
                f"{requests.INTERFACE} has {', '.join(found.values()) or 'no address'}"
            )
        return hostname, [found[ip] for ip in ips]

    def page(self, ip: str) -> tuple[str, str]:
        """Fetch the pod's page from this node, as the kubelet's probes do. Returns its URL and content."""
        url = f"http://{f'[{ip}]' if ':' in ip else ip}:{requests.PORT}/"
        answer = ""

        def is_served() -> bool:
            nonlocal answer
            try:
                answer = fetch(ip)
            except ConnectionRefusedError:
                self.require_running()
                return False  # the server does not listen yet
            except (OSError, http.client.HTTPException) as error:
                raise CriShimError(f"cannot fetch {url} from this node: {error}") from error
            return True

        self._wait_for(is_served, f"nothing listens at {url}")
        if answer != requests.greeting(self._pod.name):
            raise CriShimError(f"{url} answered {answer[:200]!r}, which is not this pod's page")
        return url, answer

    def usage(self) -> str:
        """Verify the container's CPU, memory and disk usage. Returns it as text."""
        with errors_of("cannot read the container's statistics"):
            request = api.ContainerStatsRequest(container_id=self._pod.container_id)
            stats = self._pod.client.runtime.ContainerStats(request, timeout=CALL_TIMEOUT_S).stats
        shown = []
        if stats.cpu.HasField("usage_core_nano_seconds"):
            cpu_ns = stats.cpu.usage_core_nano_seconds.value
            if cpu_ns == 0:
                raise CriShimError("the container runs, but its CPU usage is 0 in ContainerStats")
            shown.append(f"CPU {cpu_ns / 1e6:.1f} ms")
        if stats.memory.HasField("usage_bytes"):
            used = stats.memory.usage_bytes.value
            if used == 0:
                raise CriShimError(
                    "the container runs, but its memory usage is 0 in ContainerStats"
                )
            shown.append(f"memory {size_text(used)}")
        if not shown:
            raise CriShimError("ContainerStats has neither CPU nor memory usage of the container")
        layer = stats.writable_layer
        if layer.used_bytes.value == 0:
            raise CriShimError(
                "the container wrote a file, but its writable layer is empty in ContainerStats"
            )
        return ", ".join([*shown, f"disk {size_text(layer.used_bytes.value)}"])

    def graceful_end(self) -> None:
        """Verify that the stopped container handled SIGTERM: it wrote its last line and ended with 0."""
        status = self._pod.container_status()
        if status.state != api.CONTAINER_EXITED or status.exit_code != 0:
            raise CriShimError(
                f"the container ended with exit code {status.exit_code} ({status.reason}) after its stop, "
                "but it exits with 0 on SIGTERM"
            )
        if Written("stdout", requests.GOODBYE) not in parse_log(self._log_bytes()):
            raise CriShimError(f"the container's last line is not in {self._pod.log_file}")

    def require_running(self) -> None:
        """Raise WrongStateError, with the container's last output, if the container has ended."""
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


def fetch(ip: str) -> str:
    """The beginning of the pod's page, at most `MAX_PAGE_BYTES`. Raises OSError, http.client.HTTPException."""
    # Not urllib, which would use a proxy from the environment.
    connection = http.client.HTTPConnection(ip, requests.PORT, timeout=FETCH_TIMEOUT_S)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read(MAX_PAGE_BYTES).decode(errors="replace").strip()
    finally:
        connection.close()
