"""The task API of one shim: a call of ours for each of its methods that are used, with errors in the daemon's terms.

Rules:
- Each call but `wait` has a deadline, since a shim may hang.
- NotFoundError stands for a container or process that the shim doesn't know (any more); an UnavailableError for a shim
  that is gone, or that has not taken what was sent before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import DecodeError, Message

from cri_shim._pb.shim.v2 import task_pb2 as pb
from cri_shim.errors import (
    DeadlineError,
    NotFoundError,
    RuntimeCommandError,
    UnavailableError,
    UnsupportedError,
)
from cri_shim.oci.runtime_errors import runtime_message
from cri_shim.operations import step
from cri_shim.ttrpc.errors import CallError, Code, ConnectionLostError
from cri_shim.ttrpc.wire import MessageTooLongError

if TYPE_CHECKING:
    from cri_shim.ttrpc.client import Client

A = TypeVar("A", bound=Message)
PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RESOURCES_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"


class Task:
    """Calls one shim."""

    def __init__(self, client: Client, service: str, *, handler: str, timeout_s: float) -> None:
        self._client = client
        self._service = service
        self._handler = handler
        self._timeout_s = timeout_s

    @property
    def closed(self) -> bool:
        """Whether the connection is gone."""
        return self._client.closed

    def close(self) -> None:
        """Close the connection. What the shim runs goes on."""
        self._client.close()

    async def create(self, request: pb.CreateTaskRequest, *, timeout_s: float) -> int:
        """Create a container; the pid that stands for it on the node."""
        answer = await self._call(
            "Create", request.id, request, pb.CreateTaskResponse, timeout_s=timeout_s
        )
        return answer.pid

    async def start(
        self, task_id: str, exec_id: str = "", *, timeout_s: float | None = None
    ) -> int:
        """Start a created container or exec; its pid."""
        request = pb.StartRequest(id=task_id, exec_id=exec_id)
        answer = await self._call("Start", task_id, request, pb.StartResponse, timeout_s=timeout_s)
        return answer.pid

    async def exec(self, request: pb.ExecProcessRequest, *, timeout_s: float) -> None:
        """Prepare one more process, which `start` starts."""
        await self._call("Exec", request.id, request, pb.Empty, timeout_s=timeout_s)

    async def kill(
        self, task_id: str, signal_number: int, *, exec_id: str = "", everything: bool = False
    ) -> None:
        """Send a signal to a process, or to all of the container's."""
        request = pb.KillRequest(id=task_id, exec_id=exec_id, signal=signal_number, all=everything)
        await self._call("Kill", task_id, request, pb.Empty)

    async def wait(
        self, task_id: str, exec_id: str = "", *, timeout_s: float | None
    ) -> pb.WaitResponse:
        """How a process has ended, once it has; None waits as long as the shim lives."""
        request = pb.WaitRequest(id=task_id, exec_id=exec_id)
        return await self._wait(request, timeout_s)

    async def _wait(self, request: pb.WaitRequest, timeout_s: float | None) -> pb.WaitResponse:
        return await self._answer("Wait", request.id, request, pb.WaitResponse, timeout_s)

    async def delete(self, task_id: str, exec_id: str = "") -> None:
        """Forget a container or exec that has ended."""
        request = pb.DeleteRequest(id=task_id, exec_id=exec_id)
        await self._call("Delete", task_id, request, pb.DeleteResponse)

    async def state(self, task_id: str) -> pb.StateResponse:
        """What the shim knows of a container."""
        return await self._call("State", task_id, pb.StateRequest(id=task_id), pb.StateResponse)

    async def resize(self, task_id: str, exec_id: str, width: int, height: int) -> None:
        """Set a terminal's size, in characters."""
        request = pb.ResizePtyRequest(id=task_id, exec_id=exec_id, width=width, height=height)
        await self._call("ResizePty", task_id, request, pb.Empty)

    async def close_input(self, task_id: str, exec_id: str = "") -> None:
        """Have the shim close its end of a process's standard input."""
        request = pb.CloseIORequest(id=task_id, exec_id=exec_id, stdin=True)
        await self._call("CloseIO", task_id, request, pb.Empty)

    async def update(self, task_id: str, resources: bytes) -> None:
        """Set a container's limits, a runtime-spec's `linux.resources` as JSON."""
        request = pb.UpdateTaskRequest(
            id=task_id, resources=pb.Any(type_url=RESOURCES_TYPE, value=resources)
        )
        await self._call("Update", task_id, request, pb.Empty)

    async def stats(self, task_id: str) -> pb.Any:
        """What a container uses, in one of the two forms of `stats`."""
        answer = await self._call("Stats", task_id, pb.StatsRequest(id=task_id), pb.StatsResponse)
        return answer.stats

    async def pids(self, task_id: str) -> list[int]:
        """The processes of a container, as the shim counts them."""
        answer = await self._call("Pids", task_id, pb.PidsRequest(id=task_id), pb.PidsResponse)
        return [process.pid for process in answer.processes]

    async def shim_pid(self, task_id: str) -> int:
        """The pid of the shim's own process; it need not have such a container yet."""
        answer = await self._call(
            "Connect", task_id, pb.ConnectRequest(id=task_id), pb.ConnectResponse
        )
        return answer.shim_pid

    async def shutdown(self, task_id: str) -> None:
        """Have the shim end, which may do so before it answers."""
        request = pb.ShutdownRequest(id=task_id, now=True)
        await self._call("Shutdown", task_id, request, pb.Empty)

    async def _call(
        self,
        method: str,
        task_id: str,
        request: Message,
        kind: type[A],
        *,
        timeout_s: float | None = None,
    ) -> A:
        with step(f"{self._handler} shim {method}"):
            return await self._answer(
                method, task_id, request, kind, self._timeout_s if timeout_s is None else timeout_s
            )

    async def _answer(
        self, method: str, task_id: str, request: Message, kind: type[A], timeout_s: float | None
    ) -> A:
        what = f"container {task_id}: the shim of handler {self._handler!r}: {method}"
        try:
            answer = await self._client.call(
                self._service, method, request.SerializeToString(), timeout_s=timeout_s
            )
            return kind.FromString(answer)
        except CallError as error:
            raise _in_our_terms(error, task_id, what, self._service, method) from error
        except (ConnectionLostError, MessageTooLongError) as error:
            raise UnavailableError(f"{what}: {error}") from error
        except TimeoutError as error:
            raise DeadlineError(f"{what}: no answer within {timeout_s:g} s") from error
        except DecodeError as error:
            raise UnavailableError(f"{what}: its answer can't be read") from error


def _in_our_terms(
    error: CallError, task_id: str, what: str, service: str, method: str
) -> Exception:
    message = runtime_message(error.message.removesuffix(": unknown"))
    if error.code == Code.NOT_FOUND:
        return NotFoundError("container or process", task_id, message)
    if error.code == Code.UNIMPLEMENTED:
        return UnsupportedError(f"{what}: {message}")
    if error.code == Code.DEADLINE_EXCEEDED:
        return DeadlineError(f"{what}: {message}")
    return RuntimeCommandError(what, [service, method], "failed", message)
