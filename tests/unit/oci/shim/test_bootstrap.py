"""A shim's answers to `start`, in each of their forms and in none; what its verbs are told; its version."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim._pb.shim.v2 import task_pb2
from cri_shim.oci.shim.bootstrap import (
    Bootstrapped,
    delete_words,
    parse_start_answer,
    parse_version,
    silence_log,
    start_words,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"unix:///run/containerd/s/abc", Bootstrapped("/run/containerd/s/abc", 2)),
        (b"unix:///run/containerd/s/abc\n", Bootstrapped("/run/containerd/s/abc", 2)),
        (b"unix://\0/containerd-shim/x.sock", Bootstrapped("\0/containerd-shim/x.sock", 2)),
        (b"@/containerd-shim/x.sock", Bootstrapped("\0/containerd-shim/x.sock", 2)),
        (
            b'{"version":3,"address":"unix:///run/s","protocol":"ttrpc"}',
            Bootstrapped("/run/s", 3),
        ),
        (b'{"version":2,"address":"/run/s","protocol":"ttrpc","x":1}\n', Bootstrapped("/run/s", 2)),
        (
            task_pb2.BootstrapResult(
                version=3, address="unix:///run/s", protocol="ttrpc"
            ).SerializeToString(),
            Bootstrapped("/run/s", 3),
        ),
    ],
)
def test_each_form_of_the_answer_is_read(answer: bytes, expected: Bootstrapped) -> None:
    assert parse_start_answer(answer) == expected
    assert expected.service == f"containerd.task.v{expected.version}.Task"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"", "no address"),
        (b"tcp://1.2.3.4:5", "no address"),
        (b"{", "can't be read"),
        (b'{"address":"/run/s","protocol":"grpc"}', "speaks 'grpc'"),
        (b'{"address":"/run/s","version":4}', "version 4"),
        (b"/" + b"x" * 600, "too long"),
        (b"\xff\xfe\xfd", "neither"),
    ],
)
def test_what_is_no_answer_is_refused_with_the_reason(answer: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_start_answer(answer)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_refused(answer: bytes) -> None:
    try:
        found = parse_start_answer(answer)
    except ValueError:
        return
    assert found.socket.startswith(("/", "\0"))


def test_verbs_have_an_id_a_namespace_and_somebody_to_tell(tmp_path: Path) -> None:
    start = start_words("id")
    assert start[-1] == "start"
    assert all(
        start[start.index(option) + 1] for option in ("-namespace", "-publish-binary", "-id")
    )
    delete = delete_words("id", tmp_path)
    assert delete[-1] == "delete"
    assert delete[delete.index("-bundle") + 1] == str(tmp_path)


def test_the_log_goes_nowhere(tmp_path: Path) -> None:
    silence_log(tmp_path)
    silence_log(tmp_path)
    assert os.readlink(tmp_path / "log") == "/dev/null"


def test_a_version_is_found_where_one_is_told() -> None:
    said = "containerd-shim-runc-v2:\n  Version:  1.6.20~ds1\n  Revision: x\n"
    assert parse_version("shim", said).version == "1.6.20~ds1"
    assert parse_version("shim", "hello").version == ""
