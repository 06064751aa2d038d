from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.cli.checks.cgroups import read_layout
from cri_shim.oci.refusals import crun_problem
from tests.unit.cli.checks.trees import hybrid

if TYPE_CHECKING:
    from pathlib import Path


def test_crun_refuses_a_hybrid_node_with_a_controller_on_v2(tmp_path: Path) -> None:
    problem = crun_problem(read_layout(hybrid(tmp_path, on_v2="hugetlb")))
    assert problem is not None
    assert "hugetlb is on the v2 mount" in problem[0]


def test_crun_accepts_a_hybrid_node_without_one(tmp_path: Path) -> None:
    assert crun_problem(read_layout(hybrid(tmp_path, on_v2=""))) is None
