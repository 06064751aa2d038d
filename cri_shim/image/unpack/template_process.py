"""The template process: a small single-threaded program that forks one confined child per job.

    python -m cri_shim.image.unpack.template_process SOCKET_FD

Rules: it never imports grpc or asyncio. It imports everything a child needs before the first fork, since a chrooted
child has no file system to import from. It reads no job's input. It exits when the daemon closes the socket or dies,
and its children die with it. A child writes its result to its result descriptor; the template reports its wait status.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import sys
import traceback
from typing import TYPE_CHECKING, NoReturn

import msgspec

from cri_shim.errors import BadArchiveError
from cri_shim.host import confine, seccomp
from cri_shim.host.confine import Capability
from cri_shim.image.archive import Archive
from cri_shim.image.manifest import MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES
from cri_shim.image.unpack import tar
from cri_shim.image.unpack.document_jobs import read_config, read_manifest
from cri_shim.image.unpack.extract import LayerUnpacker, empty_report
from cri_shim.image.unpack.growing_file import GrowingFile
from cri_shim.image.unpack.inflate import Inflater, PlainFile
from cri_shim.image.unpack.members import MemberSpool
from cri_shim.image.unpack.protocol import (
    MAX_PACKET_BYTES,
    MAX_RESULT_BYTES,
    ArchiveReport,
    Broken,
    Ended,
    Failure,
    Fault,
    InputError,
    Job,
    JobKind,
    Kill,
    Limits,
    Notice,
    Ready,
    Request,
    Result,
    StepAside,
)

if TYPE_CHECKING:
    from cri_shim.image.unpack.inflate import Source

CHILD_CAPABILITIES = (
    Capability.CAP_CHOWN,
    Capability.CAP_DAC_OVERRIDE,
    Capability.CAP_FOWNER,
    Capability.CAP_FSETID,
    Capability.CAP_MKNOD,
    Capability.CAP_SETFCAP,
)
_TEMPLATE_CAPABILITIES = (*CHILD_CAPABILITIES, Capability.CAP_SYS_CHROOT, Capability.CAP_SETPCAP)
_CHILD_DESCRIPTORS = 64
_MAX_REASON_CHARS = 1500
_CHILD_NICENESS = 10
"""Unpacking is bulk work: the daemon's calls, and the kubelet's work beside it, go first."""
_ASIDE_NICENESS = 15
"""Beside a process of niceness 0, one of niceness 15 gets about a tenth of a processor."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Request).decode


class Template:
    """Receives jobs over the daemon's socket, forks children and reaps them."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._pids: dict[int, int] = {}
        """Pid of a child -> number of its job."""
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def run(self) -> None:
        """Serve until the daemon closes the socket."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _noted)
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._wake_read:
                    _drain(self._wake_read)
                elif not self._take():
                    return
            self._reap()

    def tell(self, notice: Notice) -> None:
        """Send a notice. If the daemon is gone, the next receive ends the process."""
        try:
            self._connection.send(_encode(notice))
        except (BrokenPipeError, ConnectionResetError):
            pass

    def _take(self) -> bool:
        try:
            packet, descriptors, flags, _ = socket.recv_fds(self._connection, MAX_PACKET_BYTES, 4)
        except ConnectionResetError:  # the daemon died with notices of ours unread
            return False
        if not packet:
            return False
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise RuntimeError("a job was truncated: its packet or its descriptors did not fit")
        request = _decode(packet)
        if isinstance(request, Kill | StepAside):
            for pid, number in self._pids.items():
                if number == request.number:
                    _end(pid) if isinstance(request, Kill) else _step_aside(pid)
            return True
        try:
            self._fork(request, descriptors)
        finally:
            for fd in descriptors:
                os.close(fd)
        return True

    def _fork(self, job: Job, descriptors: list[int]) -> None:
        template_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            _become_child(job, descriptors, template_pid)
        os.setpgid(
            pid, pid
        )  # its own process group, so that all its threads can be reniced at once
        self._pids[pid] = job.number

    def _reap(self) -> None:
        while self._pids:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            number = self._pids.pop(pid, None)
            if number is not None:
                self.tell(Ended(number=number, wait_status=status))


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _step_aside(pid: int) -> None:
    # The child is not reaped yet, so the pid is still its own. By group: PRIO_PROCESS would mean its first thread only.
    os.setpriority(os.PRIO_PGRP, pid, _ASIDE_NICENESS)


def _become_child(job: Job, descriptors: list[int], template_pid: int) -> NoReturn:
    """Confine this process, do the job, write the result, exit. Nothing may return into the template's code."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        input_fd, directory_fd, result_fd, *growing = descriptors
        try:
            # Each thread has its own niceness, and begins with that of the thread that starts it.
            os.setpriority(os.PRIO_PROCESS, 0, _CHILD_NICENESS)
            # To /dev/null: stderr is the template's memfd, which a child's output could fill.
            os.dup2(1, 2)
            confine.close_other_descriptors(descriptors)
            _confine(job.limits, directory_fd, template_pid)
            source = GrowingFile(growing[0], input_fd) if growing else PlainFile(input_fd)
            answer = _encode(_perform(job, source))
            if len(answer) > MAX_RESULT_BYTES:
                raise InputError(f"the report on its content exceeds {MAX_RESULT_BYTES} bytes")
        except (InputError, BadArchiveError) as error:
            answer = _failure(Fault.INPUT, str(error))
        except MemoryError:
            answer = _failure(Fault.INPUT, "exceeds the memory limit of a layer")
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            answer = _failure(Fault.SPACE if full else Fault.HOST, str(error))
        except BaseException:  # noqa: BLE001 - a bug of ours: the daemon logs it with its place
            answer = _failure(Fault.HOST, traceback.format_exc(limit=-4))
        with os.fdopen(result_fd, "wb", closefd=False) as stream:
            stream.write(answer)
        status = 0
    finally:
        # Not sys.exit: exit handlers and buffered output belong to the template.
        os._exit(status)


def _confine(limits: Limits, directory_fd: int, template_pid: int) -> None:
    # chroot comes first, while the child has the capability for it; the seccomp filter last, since it forbids these
    # calls.
    confine.enter_root(directory_fd)
    os.close(directory_fd)
    os.umask(0)
    confine.limit(
        memory_bytes=limits.memory_bytes,
        file_bytes=limits.max_bytes,
        descriptors=_CHILD_DESCRIPTORS,
        cpu_s=limits.cpu_s,
    )
    confine.forbid_tracing()
    confine.keep_capabilities(CHILD_CAPABILITIES)
    confine.die_with_parent(template_pid)
    seccomp.allow_only_work_on_files()


def _failure(fault: Fault, reason: str) -> bytes:
    return _encode(Failure(fault=fault, reason=reason[:_MAX_REASON_CHARS]))


def _perform(job: Job, source: Source) -> Result:
    if job.kind is JobKind.MANIFEST:
        data = _whole(source, MAX_MANIFEST_BYTES)
        return read_manifest(data, job.platform, job.what, job.content_type)
    if job.kind is JobKind.CONFIG:
        return read_config(_whole(source, MAX_CONFIG_BYTES), job.what)
    return _unpack(job, source)


def _whole(source: Source, max_bytes: int) -> bytes:
    """Read a document, and one byte more if it exceeds its limit, so that its parser refuses it."""
    data = bytearray()
    while len(data) <= max_bytes and (piece := source.read(max_bytes + 1 - len(data))):
        data += piece
    return bytes(data)


def _unpack(job: Job, source: Source) -> Result:
    inflater = Inflater(source, job.limits.max_bytes)
    inflater.start()
    try:
        if not inflater.has_output():
            diff_id = inflater.finish()
            if job.kind is JobKind.LAYER:
                return empty_report(diff_id)
            raise InputError("it is empty")
        reader = tar.TarReader(inflater.output_fd)
        if job.kind is JobKind.LAYER:
            layer = LayerUnpacker(reader, job.limits)
            layer.unpack()
            diff_id = inflater.finish()
            return layer.report(diff_id, inflater.inflated_bytes)
        spool = MemberSpool(reader, job.limits)
        spool.spool()
        inflater.finish()
        directory_fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
        images = Archive(spool.members, directory_fd, job.platform).images()
        return ArchiveReport(images=images, inflated_bytes=inflater.inflated_bytes)
    except InputError:
        # If inflating failed, the tar looks truncated: report the cause, not that effect.
        if inflater.ended_early:
            raise inflater.ended_early from None
        raise


def _noted(signum: int, frame: object) -> None:
    """Do nothing: the signal writes to the wake-up descriptor only if it has a handler."""


def _drain(fd: int) -> None:
    try:
        while os.read(fd, 512):
            pass
    except BlockingIOError:
        pass


def main(argv: list[str]) -> int:
    """Serve the socket whose descriptor number is the only argument."""
    connection = socket.socket(fileno=int(argv[1]))
    template = Template(connection)
    try:
        confine.raise_oom_score_adj(confine.HELPERS_OOM_SCORE_ADJ)
        tar.prepare()
        seccomp.build_filter(os.uname().machine)
        # unshare(2) needs CAP_SYS_ADMIN, so this comes before the capabilities go.
        confine.leave_network()
        confine.keep_capabilities(_TEMPLATE_CAPABILITIES)
        confine.forbid_tracing()
    except OSError as error:
        template.tell(Broken(reason=f"the unpacker can't confine itself: {error}; it needs root"))
        return 1
    template.tell(Ready(libarchive=tar.version()))
    template.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
