"""The process that holds the streams of all shims' containers on a node, whatever becomes of the daemon.

    python -m cri_shim.oci.shim.streams_process LISTENING_FD

Rules:
- It outlives the daemon, which connects to its socket, tells it what to hold (`streams_wire`), and replaces it when it
  dies. What it is told a second time it holds already. It ends when it holds nothing and no daemon is connected.
- A thread per container (`held_streams`): a log on a disk that hangs stops that container's output and no other's.
- It loads the standard library alone, and keeps no output: what it has read is in the log before it reads more. So its
  memory grows by a bounded amount per container.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
from typing import Any, Final

from cri_shim.oci.shim.held_streams import HeldStreams

MAX_MESSAGE_BYTES: Final = 64 << 10
STACK_BYTES: Final = 256 << 10
IDLE_S: Final = 5.0
OOM_SCORE_ADJ: Final = b"-999"


class StreamsProcess:
    """What is held, and who is connected."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._held: dict[str, HeldStreams] = {}
        self._daemons: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Serve until nothing is held and nobody is connected."""
        self._listening.setblocking(False)
        self._selector.register(self._listening, selectors.EVENT_READ)
        served = False
        while True:
            with self._lock:
                is_needed = bool(self._held or self._daemons)
            if served and not is_needed:
                return
            ready = self._selector.select(None if is_needed else IDLE_S)
            if not ready and not is_needed:
                return
            for key, _ in ready:
                if key.fileobj is self._listening:
                    self._accept()
                else:
                    self._receive(key.fileobj)  # type: ignore[arg-type]
                    served = True

    def _accept(self) -> None:
        try:
            daemon, _ = self._listening.accept()
        except OSError:  # gone again, or no descriptor left
            return
        daemon.settimeout(IDLE_S)
        with self._lock:
            self._daemons.add(daemon)
        self._selector.register(daemon, selectors.EVENT_READ)
        self._tell({"event": "hello", "pid": os.getpid()})

    def _receive(self, daemon: socket.socket) -> None:
        try:
            message = daemon.recv(MAX_MESSAGE_BYTES)
        except TimeoutError:
            return
        except OSError:
            message = b""
        if not message:
            self._selector.unregister(daemon)
            with self._lock:
                self._daemons.discard(daemon)
            daemon.close()
            return
        request = json.loads(message)
        try:
            self._do(request)
        except (OSError, RuntimeError) as error:  # RuntimeError: no further thread
            self._forget(request["id"])
            self._tell({"call": request["call"], "failed": str(error)})

    def _do(self, request: dict[str, Any]) -> None:
        container_id, call = request["id"], request["call"]
        with self._lock:
            held = self._held.get(container_id)
        if request["do"] == "hold":
            if held is None:
                held = HeldStreams(request, self._tell, lambda: self._forget(container_id))
                with self._lock:
                    self._held[container_id] = held
                held.start()
            elif held.stdin_closed:
                self._tell({"event": "input ended", "id": container_id})
            self._tell({"call": call})
        elif held is None:
            self._tell({"call": call})
        else:
            held.finish(call, at_once=request["do"] == "drop")

    def _forget(self, container_id: str) -> None:
        with self._lock:
            self._held.pop(container_id, None)

    def _tell(self, message: dict[str, Any]) -> None:
        """Tell every daemon, and how much is held; may be called in any thread."""
        with self._lock:
            packet = json.dumps({**message, "left": len(self._held)}).encode()
            for daemon in self._daemons:
                # One that doesn't read for so long is about to be replaced, and will ask anew.
                with contextlib.suppress(OSError):
                    daemon.send(packet)


def main() -> None:
    """Run the process."""
    threading.stack_size(STACK_BYTES)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb") as file:
        file.write(OOM_SCORE_ADJ)
    StreamsProcess(socket.socket(fileno=int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
