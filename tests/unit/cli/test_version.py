from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cri_shim import __version__
from cri_shim.__main__ import main

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.unit.cli.conftest import Program

HANDLERS = "runtime.handlers={runc: {path: runc}, crun: null, kata: {path: kata-runtime}}"


def test_versions_of_what_is_there_and_what_is_missing(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conmon = program("conmon", "echo 'conmon version 2.1.6'")
    program("runc", "echo 'runc version 1.1.5'")
    file = tmp_path / "config.yaml"
    file.write_text("")
    argv = ["version", "--config", str(file), "--set", HANDLERS]
    assert main([*argv, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["version"] == __version__
    assert document["cri"] == ["runtime.v1", "runtime.v1alpha2"]
    assert document["monitor"] == {
        "path": str(conmon),
        "version": "conmon version 2.1.6",
        "problem": None,
    }
    assert list(document["handlers"]) == ["runc", "kata"]
    assert document["handlers"]["kata"] == {
        "path": None,
        "version": None,
        "problem": "kata-runtime not found",
    }
    assert main(argv) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["cri-shim", __version__]
    assert lines[-1] == ["handler", "kata  kata-runtime not found"]
