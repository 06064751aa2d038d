from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.config.values import (
    CODECS,
    AnnotationPattern,
    ByteSize,
    Capability,
    EnvName,
    Executable,
    FileMode,
    GroupName,
    HandlerName,
    HostPort,
    HttpUrl,
    IpAddress,
    ListenUrl,
    Seconds,
    SysctlName,
    SysctlValue,
    UlimitName,
)

GOOD: list[tuple[type, object, object]] = [
    (Seconds, "1m30s", 90.0),
    (Seconds, "500ms", 0.5),
    (Seconds, "1.5h", 5400.0),
    (Seconds, "1d", 86400.0),
    (Seconds, "0s", 0.0),
    (ByteSize, "16MiB", 16 << 20),
    (ByteSize, 4096, 4096),
    (ByteSize, "0B", 0),
    (FileMode, "0660", 0o660),
    (FileMode, "0o600", 0o600),
    (ListenUrl, "unix:///run/x.sock", "unix:///run/x.sock"),
    (ListenUrl, "tcp://[::1]:80", "tcp://[::1]:80"),
    (HostPort, "localhost:0", "localhost:0"),
    (HostPort, "[fe80::1]:65535", "[fe80::1]:65535"),
    (IpAddress, "::1", "::1"),
    (IpAddress, "0.0.0.0", "0.0.0.0"),
    (HttpUrl, "https://node.example:443/cri/", "https://node.example:443/cri"),
    (Path, "/a//b/", Path("/a/b")),
    (Path, "//a", Path("/a")),
    (Executable, "runc", "runc"),
    (Executable, "/usr/bin/runc", "/usr/bin/runc"),
    (HandlerName, "kata-v2", "kata-v2"),
    (AnnotationPattern, "io.katacontainers.*", "io.katacontainers.*"),
    (Capability, "CAP_net_raw", "NET_RAW"),
    (UlimitName, "nofile", "nofile"),
    (SysctlName, "net.ipv4.conf.eth0.rp_filter", "net.ipv4.conf.eth0.rp_filter"),
    (SysctlName, "kernel.shmmax", "kernel.shmmax"),
    (SysctlValue, 1, "1"),
    (GroupName, 0, "0"),
    (GroupName, "kube-admins", "kube-admins"),
    (EnvName, "LD_LIBRARY_PATH", "LD_LIBRARY_PATH"),
]

BAD: list[tuple[type, object, str]] = [
    (Seconds, 30, "has no unit"),
    (Seconds, "30", "has no unit"),
    (Seconds, "-1s", "is not a duration"),
    (Seconds, "", "is not a duration"),
    (Seconds, "1.2.3s", "is not a duration"),
    (Seconds, True, "is true or false"),
    (Seconds, ["1s"], "is a list"),
    (ByteSize, "16MB", "is not a size"),
    (ByteSize, 1.5, "is not a size"),
    (ByteSize, -1, "is not a size"),
    (FileMode, 432, "is a decimal number, but permissions are octal"),
    (FileMode, "0888", "is not an octal mode"),
    (FileMode, "4755", "is not an octal mode"),
    (ListenUrl, "/run/x.sock", "starts with neither"),
    (ListenUrl, "unix://x.sock", "is not an absolute path"),
    (ListenUrl, "unix:///" + "x" * 107, "longer than the 107 bytes"),
    (ListenUrl, "tcp://:80", "is not host:port"),
    (ListenUrl, "tcp://1.2.3.4:99999", "has a port outside 0 to 65535"),
    (HostPort, "::1:80", "has an IPv6 address without brackets"),
    (HostPort, "[::g]:80", "has no IPv6 address between the brackets"),
    (HostPort, "1.2.3.400:80", "is not an IP address"),
    (HostPort, "a b:80", "has a bad host name"),
    (HostPort, "host:http", "has a port outside"),
    (IpAddress, "localhost", "is not an IP address"),
    (IpAddress, 5, "is a number"),
    (HttpUrl, "ftp://x", "is not an http or https URL"),
    (HttpUrl, "http://user:secret@x", "is not an http or https URL"),
    (Path, "a/b", "is not an absolute path"),
    (Path, "/a/../b", "contains .."),
    (Path, "/a\nb", "contains a control character"),
    (Path, "/" + "a" * 5000, "is longer than 4096 characters"),
    (Executable, "", "is not the name of a program"),
    (Executable, "bin/runc", "is not an absolute path"),
    (Executable, "..", "is not the name of a program"),
    (HandlerName, "../runc", "is not a handler name"),
    (HandlerName, "Runc", "is not a handler name"),
    (AnnotationPattern, "*", "is not an annotation key"),
    (AnnotationPattern, "a*b", "is not an annotation key"),
    (Capability, "ROOT", "is not a capability"),
    (UlimitName, "NOFILE", "is not a resource limit"),
    (SysctlName, "kernel.core_pattern", "belongs to the node"),
    (SysctlName, "net", "is not the name of a sysctl"),
    (SysctlName, "net.ipv4/../../kernel", "is not the name of a sysctl"),
    (SysctlValue, "1\n2", "contains a control character"),
    (GroupName, "a:b", "is not a group"),
    (EnvName, "A=B", "is not the name of a variable"),
]


@pytest.mark.parametrize(("kind", "written", "value"), GOOD)
def test_a_good_value_becomes_its_type(kind: type, written: object, value: object) -> None:
    parsed = CODECS[kind].parse(written)
    assert parsed == value
    assert isinstance(parsed, kind)


@pytest.mark.parametrize(("kind", "written", "value"), GOOD)
def test_what_is_rendered_reads_back(kind: type, written: object, value: object) -> None:
    codec = CODECS[kind]
    assert codec.parse(codec.render(codec.parse(written))) == value


@pytest.mark.parametrize(("kind", "written", "wrong"), BAD)
def test_a_bad_value_says_what_is_wrong(kind: type, written: object, wrong: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        CODECS[kind].parse(written)
    assert wrong in str(caught.value)


def test_every_kind_has_a_good_and_a_bad_example() -> None:
    assert {row[0] for row in GOOD} == set(CODECS)
    assert {row[0] for row in BAD} == set(CODECS)


@given(st.integers(0, 10**12))
def test_durations_survive_rendering_to_the_millisecond(milliseconds: int) -> None:
    codec = CODECS[Seconds]
    text: Any = codec.render(Seconds(milliseconds / 1000))
    assert codec.parse(text) == pytest.approx(milliseconds / 1000)


@given(st.integers(0, 1 << 59))
def test_sizes_survive_rendering(size: int) -> None:
    codec = CODECS[ByteSize]
    assert codec.parse(codec.render(ByteSize(size))) == size


@given(
    st.sampled_from(sorted(CODECS, key=lambda kind: kind.__name__)),
    st.text() | st.integers() | st.floats() | st.none() | st.booleans() | st.lists(st.text()),
)
def test_any_value_is_taken_or_refused_with_a_reason(kind: type, value: object) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(CODECS[kind].parse(value), kind)


def test_a_listener_knows_its_socket_or_its_address() -> None:
    unix, tcp = ListenUrl("unix:///run/x.sock"), ListenUrl("tcp://[::1]:8080")
    assert (unix.socket_path, unix.tcp_address) == (Path("/run/x.sock"), None)
    assert tcp.socket_path is None
    assert tcp.tcp_address is not None
    assert (tcp.tcp_address.host, tcp.tcp_address.port) == ("::1", 8080)
