"""The messages that plans become."""

from __future__ import annotations

import json
import os
from pathlib import Path

from cri_shim._pb.shim.v2 import task_pb2 as pb
from cri_shim.config.model import HandlerKind
from cri_shim.oci.runtime import ExecFiles, HandlerSettings
from cri_shim.oci.shim.requests import (
    TaskPlan,
    create_request,
    exec_request,
    hold_request,
    runc_options,
    runtime_options,
)

BUNDLE = Path("/bundle")


def test_a_terminal_has_one_output_and_what_has_no_input_none() -> None:
    request = create_request(TaskPlan("c", "p", BUNDLE, terminal=True), None)
    assert (request.stdin, request.stdout, request.stderr) == ("", "/bundle/stdout", "")
    assert request.terminal
    assert not request.HasField("options")


def test_a_pause_container_has_no_streams() -> None:
    request = create_request(TaskPlan("p", "p", BUNDLE), runc_options(Path("/r"), systemd=True))
    assert (request.stdin, request.stdout, request.stderr) == ("", "", "")
    options = pb.RuncOptions.FromString(request.options.value)
    assert (options.root, options.systemd_cgroup) == ("/r", True)


def test_other_shims_are_told_a_configuration_if_there_is_one() -> None:
    settings = HandlerSettings("k", "kata", Path("/r"), HandlerKind.SHIM)
    assert runtime_options(settings) is None
    settings = HandlerSettings(
        "k", "kata", Path("/r"), HandlerKind.SHIM, config_path="/k.toml", type_url="t"
    )
    options = runtime_options(settings)
    assert options is not None
    read = pb.RuntimeOptions.FromString(options.value)
    assert (options.type_url, read.config_path, read.type_url) == (
        "runtimeoptions.v1.Options",
        "/k.toml",
        "t",
    )


def test_an_execs_streams_are_descriptors_of_this_process(tmp_path: Path) -> None:
    files = ExecFiles(*(tmp_path / f"e.{each}" for each in ("json", "pid", "inner")))
    files.process.write_text(json.dumps({"args": ["x"]}))
    reading, writing = os.pipe()
    request = exec_request("c", files, (reading, writing, None), terminal=False)
    assert (request.id, request.exec_id, request.stderr) == ("c", "e", "")
    assert os.stat(request.stdin).st_ino == os.fstat(reading).st_ino
    os.close(reading)
    os.close(writing)


def test_what_is_held_has_its_log_if_there_is_one() -> None:
    held = hold_request(TaskPlan("c", "p", BUNDLE, Path("/l"), stdin=True))
    assert (held.dir, held.log, held.stdin) == ("/bundle", "/l", True)
    assert hold_request(TaskPlan("c", "p", BUNDLE)).log is None
