"""Read the error messages of OCI runtimes. Pure.

Rules:
- Runtimes write errors to stderr: runc and kata-runtime as logrus text (`time=… level=error msg="…"`), any of them as
  JSON lines when so configured, crun and runsc as plain text. Users get the bare message.
- Runtimes have no exit codes for "no such container" and "not running", only messages. Patterns match the whole
  message, and the container's ID where the runtime prints it. So no other failure that mentions a missing file passes
  for success.
"""

from __future__ import annotations

import re

import msgspec

from cri_shim.errors import UNREADABLE_DOCUMENT

MAX_MESSAGE_CHARS = 2000

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_LOGRUS = re.compile(
    r'^(?:time=(?:"[^"]*"|\S+) )?level=(?P<level>[a-z]+) msg=(?P<message>"(?:[^"\\]|\\.)*"|\S*)'
)
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))")
_CONTROL_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "", "b": "", "f": "", "v": ""}
_PLAIN_TIMESTAMP = re.compile(r"^\d{4}-\d\d-\d\dT[\d:.]+Z?: ")
_REFUSED_LIMIT = re.compile(
    r"\bwrite [`'\"]?(?:/\S*/)?([a-z0-9]+\.[A-Za-z0-9_.]+)[`'\"]?: "
    r"(?:invalid argument|numerical result out of range|permission denied)",
    re.IGNORECASE,
)
_NO_PROGRAM = re.compile(
    r"container process(?: caused)?: (?:error during container init: )?exec: "  # runc
    r"|\b(?:executable file [`'\"]|open executable\b|exec container process\b|exec [`'\"])"  # crun
    r"|\b(?:error finding executable \"|failed to load )"  # runsc
    r"|\bexec: \"[^\"]*\": executable file not found\b",  # kata-runtime
    re.IGNORECASE,
)
_NOT_THERE = ("not found", "not found in $path", "no such file or directory")
NOT_FOUND, NOT_RUNNABLE = 127, 126
"""A shell's exit codes for a command that doesn't exist, and for one that can't be executed."""
_ERROR_LEVELS = frozenset({"error", "fatal", "panic"})


class _JsonLine(msgspec.Struct, frozen=True):
    level: str = ""
    msg: str = ""


def runtime_message(stderr: str) -> str:
    """The runtime's error without its log format; empty when it printed nothing.

    Lines of level error, fatal or panic, if there are any; otherwise every line. At most the last 2000 characters, in
    which control characters are replaced: the request may have chosen some of the text, and it must neither move a
    terminal's cursor nor begin a line of a log.
    """
    errors: list[str] = []
    others: list[str] = []
    for line in stderr.splitlines():
        level, message = _parse_line(line.strip())
        if message:
            (errors if level in _ERROR_LEVELS else others).append(message)
        # A runtime logs the same error where it occurs and again where it gives up.
    lines = dict.fromkeys(errors or others)
    return _CONTROL.sub(" ", "; ".join(lines))[-MAX_MESSAGE_CHARS:]


def says_not_found(message: str, container_id: str) -> bool:
    """Whether the message says that the runtime knows no such container."""
    name = re.escape(container_id)
    return _matches(
        message,
        rf"container (?:ID )?(?:[`\"(']?{name}[`\")']? )?does not exist",  # runc, crun, kata-runtime
        rf"error opening file `[^`]*/{name}/status`: No such file or directory",  # crun before 1.9
        rf"cannot open directory [`'][^`']*/{name}[`']: No such file or directory",
        rf"loading container(?: \"{name}\")?: file does not exist",  # runsc
    )


def says_not_running(message: str, container_id: str) -> bool:
    """Whether the message says that the container exists but has no process to signal."""
    name = re.escape(container_id)
    return _matches(
        message,
        r"container not running",  # runc
        rf"(?:kill container: )?(?:the )?container `{name}` is not running",  # crun
        r"kill container: No such process",
        rf"container {name} not ready(?:,| or) running(?: or paused)?, cannot send a signal",  # kata-runtime
        r"(?:.*: )?(?:sandbox|container) is not running",  # runsc
    )


def says_too_little_memory(message: str) -> bool:
    """Whether the message says that the memory limit is too small for the runtime's own process in the cgroup."""
    return (
        re.search(r"unable to set memory limit to \d+|OOM-killed \(memory limit too low", message)
        is not None
    )


def program_exit_code(message: str, working_directory: str) -> int:
    """A shell's exit code where the runtime could not execute the program or enter its directory; 0 for other failures.

    These failures are due to the image and the command, not to the rest of the request.
    """
    if _NO_PROGRAM.search(message) is None and not says_no_directory(message, working_directory):
        return 0
    return NOT_FOUND if message.lower().rstrip(" .").endswith(_NOT_THERE) else NOT_RUNNABLE


def says_no_directory(message: str, directory: str) -> bool:
    """Whether the message says that the runtime could not create or enter the container's working directory."""
    found = re.search(r"\b(?:mkdir|chdir)(?: to)?(?: cwd)? [(`'\"]{0,2}(/[^:`'\"]*)", message)
    return found is not None and f"{directory}/".startswith(f"{found[1].rstrip('/')}/")


def refused_limit(message: str) -> str:
    """The cgroup file whose value the kernel rejected, such as `cpuset.cpus`; "" for other failures."""
    found = _REFUSED_LIMIT.search(message)
    return found[1] if found else ""


def device_not_made(message: str) -> str:
    """The path, in the container or on the node, of a device that the runtime could not create; otherwise ""."""
    found = re.search(r"\bmknod [`'\"]?(/[^:`'\"]*)", message)
    return found[1] if found else ""


def _matches(message: str, *patterns: str) -> bool:
    return any(re.fullmatch(pattern, message, re.IGNORECASE) for pattern in patterns)


def _parse_line(line: str) -> tuple[str, str]:
    """The level (empty for plain text) and the message of one line."""
    if line.startswith("{"):
        try:
            record = msgspec.json.decode(line, type=_JsonLine)
        except UNREADABLE_DOCUMENT:
            return "", line
        return record.level, record.msg.strip()
    found = _LOGRUS.match(line)
    if found is not None:
        return found["level"], _unquote(found["message"]).strip()
    return "", _PLAIN_TIMESTAMP.sub("", line)


def _unquote(text: str) -> str:
    """A message as logrus writes it: bare, or a Go string literal."""
    if len(text) < 2 or not text.startswith('"'):
        return text
    return _ESCAPE.sub(_unescape, text[1:-1])


def _unescape(match: re.Match[str]) -> str:
    for number in match.groups()[:3]:
        if number is not None:
            code = int(number, 16)
            return chr(code) if code <= 0x10FFFF else "\ufffd"
    return _CONTROL_ESCAPES.get(match[4], match[4])
