"""The CDI devices of this node, from the JSON and YAML files of the configured directories.

Rules: `host/dropins` finds and follows the files, `spec/cdi` parses them. A file that can't be used takes away its own
devices only; a request for one of those gets the file's problem in its error.
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
"""Enough for a hundred GPUs with all their libraries."""
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's parser where PyYAML has it: the Python one takes seconds for such a file."""


class CdiRegistry:
    """Follows the CDI files, and resolves device names."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self.files: DropIns[CdiSpec] = DropIns(
            "CDI files", directories, (".json", ".yaml"), _parse, max_bytes=MAX_FILE_BYTES
        )

    def edits_for(self, names: Sequence[str]) -> tuple[ContainerEdits, ...]:
        """The container edits of these devices. Blocks while it reads changed files.

        Raises InvalidArgumentError for a device that no file describes, or that several of equal priority describe.
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
