"""The types of configuration values: parsing, rendering, and the description of allowed values.

Rules:
- A type is a row of `CODECS`: its Python class, a parser, a renderer, and a text with the allowed values.
- A parser gets a value of the YAML document (text, number, list). It raises `ValueError` with a phrase that follows the
  key's name: "is not ...", "has ...".
- `render` returns the value as it is written in a file, and `parse(render(x)) == x`.
- Text with a grammar is a subclass of `str`, a number with a unit a subclass of `float` or `int`, so that code can use
  it directly.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_TEXT = 4096
"""The longest text of one value: PATH_MAX."""

MAX_SOCKET_PATH_BYTES = 107
"""The size of sun_path (unix(7)) without the final NUL."""

CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL"),
    *("SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST"),
    *("NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO"),
    *("SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE"),
    *("SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE"),
    *("AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM"),
    *("BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE"),
)
"""Names in the order of their numbers in linux/capability.h, without the CAP_ prefix."""

ULIMITS = (
    *("core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc"),
    *("rss", "rtprio", "rttime", "sigpending", "stack"),
)
"""The resources of setrlimit(2): RLIMIT_<NAME> in lower case.

RLIMIT_AS is left out: memory limits serve its purpose.
"""

NAMESPACED_SYSCTLS = ("net.", "fs.mqueue.", "kernel.shm", "kernel.msg", "kernel.sem")
"""Sysctls of a namespace that a pod owns. Any other sysctl belongs to the node, and a pod would change it for all."""


class Seconds(float):
    """A duration, written `1m30s`."""


class ByteSize(int):
    """A number of bytes, written `16MiB`."""


class FileMode(int):
    """Permission bits, written in octal: `0660`."""


class ListenUrl(str):
    """`unix:///absolute/path` or `tcp://host:port`."""

    @property
    def socket_path(self) -> Path | None:
        """The path of a unix socket, None for TCP."""
        return Path(self.removeprefix("unix://")) if self.startswith("unix:") else None

    @property
    def tcp_address(self) -> HostPort | None:
        """Host and port of a TCP listener, None for a unix socket."""
        return HostPort(self.removeprefix("tcp://")) if self.startswith("tcp:") else None


class HostPort(str):
    """`host:port`, an IPv6 host in brackets; port 0 lets the kernel choose one."""

    @property
    def host(self) -> str:
        """The host without brackets."""
        return self.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port, 0 to 65535."""
        return int(self.rpartition(":")[2])


class IpAddress(str):
    """An IPv4 or IPv6 address."""


class HttpUrl(str):
    """`http://` or `https://`, a host, perhaps a port and a path; no user, query or fragment."""


class Executable(str):
    """A program: an absolute path, or a name to look up in PATH."""


class HandlerName(str):
    """The name of a runtime handler in a RuntimeClass.

    It is also a directory name, so its grammar has no `/` or `.`.
    """


class AnnotationPattern(str):
    """An annotation key, or a prefix that ends in `*`."""


class Capability(str):
    """A Linux capability in upper case, without the CAP_ prefix."""


class UlimitName(str):
    """A resource of setrlimit(2) in lower case."""


class GroupName(str):
    """A group of the node: a name or a number."""


class SysctlValue(str):
    """The value of a sysctl."""


class SysctlName(str):
    """A sysctl of a namespace that a pod owns, with dots."""


class EnvName(str):
    """The name of an environment variable."""


@dataclass(frozen=True, slots=True)
class Codec:
    """Parser, renderer and description of one type."""

    parse: Callable[[object], Any]
    render: Callable[[Any], object]
    allowed: str


def describe_kind(value: object) -> str:
    """The type of a value, as a phrase: "is text", "is a list"."""
    if value is None:
        return "has no value"
    if isinstance(value, bool):
        return "is true or false"
    kinds = {str: "is text", int: "is a number", float: "is a number", list: "is a list"}
    return kinds.get(type(value), "is a mapping")


def parse_text(value: object) -> str:
    """Text on one line, without control characters, which could forge lines in logs and files. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(describe_kind(value))
    if len(value) > MAX_TEXT:
        raise ValueError(f"is longer than {MAX_TEXT} characters")
    if not value.isprintable():
        raise ValueError("contains a control character or an unprintable one")
    return value


def _text_or_number(value: object) -> str:
    return str(value) if type(value) in (int, float) else parse_text(value)


_DURATION = re.compile(r"(?:[0-9]{1,12}(?:\.[0-9]{1,9})?(?:ms|s|m|h|d))+")
_DURATION_PART = re.compile(r"([0-9.]{1,22})(ms|s|m|h|d)")
_SECONDS_OF = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def _parse_seconds(value: object) -> Seconds:
    text = _text_or_number(value)
    if not _DURATION.fullmatch(text):
        if re.fullmatch(r"[0-9.]+", text):
            raise ValueError("has no unit")
        raise ValueError("is not a duration")
    parts = _DURATION_PART.findall(text)
    return Seconds(round(sum(float(number) * _SECONDS_OF[unit] for number, unit in parts), 3))


def _render_seconds(seconds: Seconds) -> str:
    left = round(seconds * 1000)
    text = ""
    for unit, milliseconds in (("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, left = divmod(left, milliseconds)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


_SIZE = re.compile(r"([0-9]{1,18})(B|KiB|MiB|GiB|TiB)?")
_BYTES_OF = {"TiB": 1 << 40, "GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "B": 1, "": 1}


def _parse_size(value: object) -> ByteSize:
    match = _SIZE.fullmatch(_text_or_number(value))
    if match is None:
        raise ValueError("is not a size")
    return ByteSize(int(match[1]) * _BYTES_OF[match[2] or ""])


def _render_size(size: ByteSize) -> str:
    if not size:
        return "0B"
    unit = next(name for name, factor in _BYTES_OF.items() if size % factor == 0 and size >= factor)
    return f"{size // _BYTES_OF[unit]}{unit}"


def _parse_mode(value: object) -> FileMode:
    if type(value) is int:
        # Other YAML readers take 0660 as octal and 660 as decimal, so the author's intention is unclear.
        raise ValueError("is a decimal number, but permissions are octal")
    text = parse_text(value)
    if not re.fullmatch(r"0o?[0-7]{3}", text):
        raise ValueError("is not an octal mode")
    return FileMode(int(text.removeprefix("0o"), 8))


_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


def _parse_address(value: object) -> IpAddress:
    try:
        return IpAddress(ipaddress.ip_address(parse_text(value)))
    except ipaddress.AddressValueError as error:
        raise ValueError("is not an IP address") from error
    except ValueError as error:
        raise ValueError("is not an IP address" if isinstance(value, str) else str(error)) from None


def _parse_host_port(value: object) -> HostPort:
    text = parse_text(value)
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ValueError("is not host:port")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError("has a port outside 0 to 65535")
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host.removeprefix("[").removesuffix("]"))
        except ValueError as error:
            raise ValueError("has no IPv6 address between the brackets") from error
        return HostPort(text)
    if ":" in host:
        raise ValueError("has an IPv6 address without brackets")
    if re.fullmatch(r"[0-9.]+", host):
        _parse_address(host)
    elif not _HOST.fullmatch(host):
        raise ValueError("has a bad host name")
    return HostPort(text)


def _parse_listen_url(value: object) -> ListenUrl:
    text = parse_text(value)
    if text.startswith("tcp://"):
        _parse_host_port(text.removeprefix("tcp://"))
        return ListenUrl(text)
    if not text.startswith("unix://"):
        raise ValueError("starts with neither unix:// nor tcp://")
    path = _parse_path(text.removeprefix("unix://"))
    if len(str(path).encode()) > MAX_SOCKET_PATH_BYTES:
        raise ValueError(f"is longer than the {MAX_SOCKET_PATH_BYTES} bytes of a socket path")
    return ListenUrl(f"unix://{path}")


_HTTP_URL = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?(/[^\s?#]*)?")


def _parse_http_url(value: object) -> HttpUrl:
    text = parse_text(value)
    if not _HTTP_URL.fullmatch(text):
        raise ValueError("is not an http or https URL")
    return HttpUrl(text.removesuffix("/"))


def _parse_path(value: object) -> Path:
    text = parse_text(value)
    path = Path(text)
    if not path.is_absolute():
        raise ValueError("is not an absolute path")
    if ".." in path.parts:
        raise ValueError("contains ..")
    # Path keeps two leading slashes, since POSIX allows a special meaning for them.
    return Path("/" + text.lstrip("/"))


def _parse_executable(value: object) -> Executable:
    text = parse_text(value)
    if "/" in text:
        return Executable(_parse_path(text))
    if not text or text in (".", "..") or text != text.strip():
        raise ValueError("is not the name of a program")
    return Executable(text)


def _grammar(kind: type[str], pattern: str, wrong: str, allowed: str) -> Codec:
    """The codec of a text type whose grammar is a regular expression."""
    grammar = re.compile(pattern)

    def parse(value: object) -> str:
        text = parse_text(value)
        if not grammar.fullmatch(text):
            raise ValueError(wrong)
        return kind(text)

    return Codec(parse, str, allowed)


def _parse_group(value: object) -> GroupName:
    text = _text_or_number(value)
    if not re.fullmatch(r"[0-9]{1,10}|[A-Za-z_][A-Za-z0-9_.-]*[$]?", text):
        raise ValueError("is not a group")
    return GroupName(text)


def _parse_capability(value: object) -> Capability:
    name = parse_text(value).upper().removeprefix("CAP_")
    if name not in CAPABILITIES:
        raise ValueError("is not a capability")
    return Capability(name)


def _parse_ulimit_name(value: object) -> UlimitName:
    name = parse_text(value)
    if name not in ULIMITS:
        raise ValueError("is not a resource limit")
    return UlimitName(name)


def _parse_sysctl_value(value: object) -> SysctlValue:
    # `net.ipv4.ip_forward: 1` is natural, so a number is accepted here, while other text keys require quotes.
    return SysctlValue(_text_or_number(value))


def _parse_sysctl_name(value: object) -> SysctlName:
    name = parse_text(value)
    if not re.fullmatch(r"[a-z0-9_-]+(\.[A-Za-z0-9_-]+)+", name):
        raise ValueError("is not the name of a sysctl")
    if not name.startswith(NAMESPACED_SYSCTLS):
        raise ValueError("belongs to the node, not to a pod")
    return SysctlName(name)


CODECS: dict[type, Codec] = {
    Seconds: Codec(_parse_seconds, _render_seconds, "a duration like 500ms, 30s, 1m30s or 4h"),
    ByteSize: Codec(_parse_size, _render_size, "a size like 64KiB, 16MiB or 1GiB"),
    FileMode: Codec(
        _parse_mode, lambda mode: f"{mode:04o}", 'four octal digits in quotes, like "0660"'
    ),
    ListenUrl: Codec(_parse_listen_url, str, "unix:///absolute/path or tcp://host:port"),
    HostPort: Codec(_parse_host_port, str, "host:port, like 127.0.0.1:10351 or [::1]:10351"),
    IpAddress: Codec(_parse_address, str, "an IPv4 or IPv6 address"),
    HttpUrl: Codec(
        _parse_http_url, str, "http(s)://host[:port][/path] without user, query and fragment"
    ),
    Path: Codec(_parse_path, str, "an absolute path without .."),
    Executable: Codec(_parse_executable, str, "an absolute path, or the name of a program in PATH"),
    HandlerName: _grammar(
        HandlerName,
        r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
        "is not a handler name",
        "a handler name of a RuntimeClass: at most 63 lower-case letters, digits and inner dashes",
    ),
    AnnotationPattern: _grammar(
        AnnotationPattern,
        r"[A-Za-z0-9][A-Za-z0-9._/-]*\*?",
        "is not an annotation key",
        "an annotation key, or the beginning of one followed by *",
    ),
    Capability: Codec(_parse_capability, str, "a capability of capabilities(7), like NET_RAW"),
    UlimitName: Codec(_parse_ulimit_name, str, "one of " + ", ".join(ULIMITS)),
    SysctlName: Codec(
        _parse_sysctl_name, str, "net.*, fs.mqueue.*, kernel.shm*, kernel.msg* or kernel.sem"
    ),
    SysctlValue: Codec(_parse_sysctl_value, str, "text on one line"),
    GroupName: Codec(_parse_group, str, "the name of a group, or its number"),
    EnvName: _grammar(
        EnvName,
        r"[A-Za-z_][A-Za-z0-9_]*",
        "is not the name of a variable",
        "letters, digits and _",
    ),
}
