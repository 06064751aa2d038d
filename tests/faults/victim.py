"""A pod that is used all the time, by a process of its own: what other tenants do to it shows in its calls.

    python -m tests.faults.victim SOCKET LOG_DIR CGROUP_PARENT IMAGE

Apart from the tests, whose threads would take the interpreter from its calls. On standard input it is told `live` and
`rest`; it says `living` and `rested` when it does, and of each call that ended one line of JSON (`Call`). At rest it
has no pod, no image of its own and no session.

Probes (execs, lists, statistics, a session that answers) and lives (of containers, pods and images) are two threads, so
that a call that hangs does not hide what the others would meet.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import grpc

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.faults.served_images import serve_images
from tests.harness.client import CALL_TIMEOUT_S, Client
from tests.harness.daemon import CHECKOUT, environment
from tests.harness.streaming_client import RefusedError, RemoteCommandClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.harness.daemon import Daemon

PAUSE_S = 0.01
"""Between calls: others want the machine, too."""
SETTLED_S = 2 * CALL_TIMEOUT_S
"""After so long each call has ended, or failed."""


@dataclass(frozen=True, slots=True)
class Call:
    """One that ended."""

    name: str
    began_s: float
    """By the monotonic clock, which all processes share."""
    seconds: float
    problem: str
    """Why it failed, or ""."""


class VictimError(Exception):
    """The process ended, or does not do what it is told."""


class Victim:
    """The test's side."""

    def __init__(self, daemon: Daemon, image: str) -> None:
        """Start the process, at rest."""
        self.calls: list[Call] = []
        """All that ended, in that order."""
        self._states: list[str] = []
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", sys.executable, "-m", __name__),
                *(str(daemon.socket), str(daemon.pod_log_dir), daemon.cgroup_parent, image),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=CHECKOUT,
            env=environment(),
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, output = self._process.stdin, self._process.stdout
        self._reader = threading.Thread(target=self._read, args=(output,), name="victim's calls")
        self._reader.start()

    @contextmanager
    def living(self) -> Iterator[None]:
        """Its calls go on while this is open; at the end all have ended."""
        self._tell("live", "living")
        try:
            yield
        finally:
            self._tell("rest", "rested")

    def end(self) -> None:
        """No more of it."""
        self._input.close()
        try:
            self._process.wait(SETTLED_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _tell(self, what: str, expected: str) -> None:
        with self._changed:
            self._states.clear()
            self._input.write(f"{what}\n".encode())
            self._input.flush()
            self._changed.wait_for(lambda: self._states, SETTLED_S)
            if self._states != [expected]:
                raise VictimError(f"told to {what}, the victim says {self._states or 'nothing'}")

    def _read(self, output: IO[bytes]) -> None:
        for line in output:
            said = json.loads(line)
            with self._changed:
                if isinstance(said, str):
                    self._states.append(said)
                    self._changed.notify()
                else:
                    self.calls.append(Call(**said))
        with self._changed:
            self._states.append("ended")
            self._changed.notify()


# --- the process


class _Life:
    """From `live` to `rest`."""

    def __init__(
        self, client: Client, image: str, pulled: Sequence[str], say: Callable[[object], None]
    ) -> None:
        self._client = client
        self._image = image
        self._pulled = pulled
        self._say = say
        self._enough = threading.Event()
        self._config = client.pod_config()
        self._pod = client.run_pod(self._config)
        self._container = self._run("sleep", "1000000")
        self._session = RemoteCommandClient(
            client.exec_url(self._container, "cat", stdin=True), stdin=True
        )
        self._threads = [
            threading.Thread(target=self._turns, args=turns)
            for turns in (
                (self._exec, self._lists, self._exec, self._statistics, self._stream),
                (self._container_life, self._container_life, self._image_life, self._pod_life),
            )
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Every call has ended; then everything goes."""
        self._enough.set()
        for thread in self._threads:
            thread.join()
        self._session.sock.close()
        self._client.stop_pod(self._pod)
        self._client.remove_pod(self._pod)

    def _turns(self, *turns: Callable[[], None]) -> None:
        while True:
            for turn in turns:
                if self._enough.is_set():
                    return
                turn()

    def _exec(self) -> None:
        with self._call("ExecSync") as problems:
            answer = self._client.exec(self._container, "echo", "alive", timeout_s=5)
            if answer.stdout != b"alive\n":
                problems.append(f"wrong answer {answer!r}")

    def _lists(self) -> None:
        with self._call("ListPodSandbox"):
            self._client.pods()
        with self._call("ListContainers"):
            self._client.containers()
        with self._call("ContainerStatus"):
            self._client.status(self._container)

    def _statistics(self) -> None:
        with self._call("ListContainerStats"):
            self._client.runtime.ListContainerStats(
                api.ListContainerStatsRequest(), timeout=CALL_TIMEOUT_S
            )
        with self._call("ImageFsInfo"):
            self._client.images.ImageFsInfo(api.ImageFsInfoRequest(), timeout=CALL_TIMEOUT_S)

    def _stream(self) -> None:
        with self._call("stream that goes on"):
            so_far = len(self._session.stdout)
            self._session.write(b"still there?\n")
            self._session.until(lambda: len(self._session.stdout) == so_far + 13)
        with self._call("new stream") as problems:
            url = self._client.exec_url(self._container, "echo", "alive")
            with RemoteCommandClient(url) as session:
                session.until_closed()
                if session.stdout != b"alive\n":
                    problems.append(f"wrong output {session.stdout!r}")

    def _container_life(self) -> None:
        config = self._client.container_config(self._image, ["sleep", "1000000"])
        with self._call("CreateContainer") as failed:
            container = self._client.create(self._pod, config, self._config)
        if failed:
            return
        with self._call("StartContainer"):
            self._client.start(container)
        with self._call("StopContainer"):
            self._client.stop(container)
        with self._call("RemoveContainer"):
            self._client.remove(container)

    def _pod_life(self) -> None:
        with self._call("RunPodSandbox") as failed:
            pod = self._client.run_pod(self._client.pod_config())
        if failed:
            return
        with self._call("StopPodSandbox"):
            self._client.stop_pod(pod)
        with self._call("RemovePodSandbox"):
            self._client.remove_pod(pod)

    def _image_life(self) -> None:
        for image in self._pulled[:1]:
            with self._call("PullImage"):
                self._client.pull(image)
            with self._call("RemoveImage"):
                self._client.remove_image(image)

    def _run(self, *command: str) -> str:
        config = self._client.container_config(self._image, command)
        return self._client.run(self._pod, config, self._config)

    @contextmanager
    def _call(self, name: str) -> Iterator[list[str]]:
        """One call; the list is for what is wrong with it though it didn't raise."""
        began_s = time.monotonic()
        problems: list[str] = []
        try:
            yield problems
        except grpc.RpcError as error:
            problems.append(f"{error.code().name}: {error.details()}"[:500])
        except (OSError, RefusedError, AssertionError) as error:
            problems.append(f"{type(error).__name__}: {error}"[:500])
        seconds = time.monotonic() - began_s
        self._say(asdict(Call(name, began_s, seconds, "; ".join(problems))))
        time.sleep(PAUSE_S)


def main(socket: str, log_dir: str, cgroup_parent: str, image: str) -> None:
    """Do as standard input says, until it ends."""
    one_at_a_time = threading.Lock()

    def say(what: object) -> None:
        with one_at_a_time:
            print(json.dumps(what), flush=True)

    client = Client(Path(socket), log_dir=Path(log_dir), cgroup_parent=cgroup_parent)
    life: _Life | None = None
    with serve_images(1) as served, client:
        for line in sys.stdin:
            if line == "live\n":
                life = _Life(client, image, served.own[0], say)
                say("living")
            elif life is not None:
                life.end()
                life = None
                say("rested")


if __name__ == "__main__":
    main(*sys.argv[1:])
