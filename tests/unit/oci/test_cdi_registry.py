from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import InvalidArgumentError
from cri_shim.oci.cdi_registry import CdiRegistry

if TYPE_CHECKING:
    from pathlib import Path

YAML = """\
cdiVersion: 0.6.0
kind: vendor.com/gpu
devices:
  - name: "0"
    containerEdits:
      env: [GPU=0]
      deviceNodes:
        - {path: /dev/gpu0, hostPath: /dev/null, fileMode: 0o660}
"""


def env(registry: CdiRegistry, *names: str) -> list[str]:
    return [entry for edit in registry.edits_for(names) for entry in edit.env]


def test_files_are_json_or_yaml_and_read_when_they_change(tmp_path: Path) -> None:
    registry = CdiRegistry([tmp_path])
    assert registry.edits_for(()) == ()
    with pytest.raises(InvalidArgumentError, match="no such device"):
        registry.edits_for(["vendor.com/gpu=0"])
    (tmp_path / "gpu.yaml").write_text(YAML.replace("0o660", "432"))
    assert env(registry, "vendor.com/gpu=0") == ["GPU=0"]
    (tmp_path / "gpu.yaml").unlink()
    document = {
        "cdiVersion": "0.6.0",
        "kind": "vendor.com/gpu",
        "devices": [{"name": "0", "containerEdits": {"env": ["GPU=json"]}}],
    }
    (tmp_path / "gpu.json").write_text(json.dumps(document))
    assert env(registry, "vendor.com/gpu=0") == ["GPU=json"]


def test_later_directory_counts(tmp_path: Path) -> None:
    for name in ("etc", "run"):
        (tmp_path / name).mkdir()
        text = YAML.replace("0o660", "432").replace("GPU=0", f"GPU={name}")
        (tmp_path / name / "gpu.yaml").write_text(text)
    registry = CdiRegistry([tmp_path / "etc", tmp_path / "run"])
    assert env(registry, "vendor.com/gpu=0") == ["GPU=run"]


@pytest.mark.parametrize("text", ["{", "a: [", "- 1", "!!python/object:os.system {}", "\x00", ""])
def test_bad_file_is_told_to_who_misses_its_device(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    (tmp_path / "good.yaml").write_text(YAML.replace("0o660", "432"))
    registry = CdiRegistry([tmp_path])
    assert env(registry, "vendor.com/gpu=0") == ["GPU=0"]
    with pytest.raises(InvalidArgumentError, match=r"unusable files: .*bad\.yaml"):
        registry.edits_for(["vendor.com/gpu=1"])
