"""The CDI devices of this node: the files of the configured directories, JSON or YAML.

Rules: see `dropins` for how files are found and followed, `spec.cdi` for what they mean. A file that can't be used
takes away its own devices only; whoever asks for one of those is told why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from cri_shim.errors import ConfigError
from cri_shim.host.dropins import DropIns
from cri_shim.oci.spec.cdi import CdiSpec, ContainerEdits, parse_cdi_spec
from cri_shim.oci.spec.cdi_edits import PlacedSpec, edits_for

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MAX_FILE_BYTES = 8 << 20
"""A node of a hundred GPUs, each with all its libraries."""
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""In C where PyYAML has it: such a file takes seconds otherwise."""


class CdiRegistry:
    """Which devices there are, and what they bring."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self.files: DropIns[CdiSpec] = DropIns(
            "CDI files", directories, (".json", ".yaml"), _parse, max_bytes=MAX_FILE_BYTES
        )

    def edits_for(self, names: Sequence[str]) -> tuple[ContainerEdits, ...]:
        """What these devices bring. Blocks while changed files are read.

        Raises InvalidArgumentError for one that no file, or more than one of equal rank, describes.
        """
        if not names:
            return ()
        specs, problems = [], []
        for file in self.files.current():
            if file.value is None:
                problems.append(file.problem)
            else:
                specs.append(PlacedSpec(file.value, str(file.path), file.priority))
        return edits_for(names, specs, problems)


def _parse(path: Path, data: bytes) -> CdiSpec:
    try:
        document = (
            msgspec.json.decode(data) if path.suffix == ".json" else yaml.load(data, Loader=_Loader)  # noqa: S506 - a safe one, see above
        )
    except (msgspec.DecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return parse_cdi_spec(document, str(path))
