"""The kubelet's pod addresses made into a network configuration."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from cri_shim.cni.pod_cidr import FILE_NAME, PodCidr
from cri_shim.errors import ConfigError, CriShimError, InvalidArgumentError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.cni.conftest import Node

pytestmark = pytest.mark.asyncio

TEMPLATE = """{"cniVersion": "1.0.0", "name": "from-cidr", "plugins": [{"type": "first", "ranges":
[{{range $i, $r := .PodCIDRRanges}}{{if $i}},{{end}}"{{$r}}"{{end}}]}]}"""


@pytest.fixture
def template(tmp_path: Path) -> Path:
    file = tmp_path / "template.json"
    file.write_text(TEMPLATE)
    return file


def pod_cidr(node: Node, template: Path | None) -> PodCidr:
    return PodCidr(node.cni, conf_dir=node.conf_dir, template=template)


def without_configuration(node: Node) -> None:
    for file in node.conf_dir.iterdir():
        file.unlink()
    node.conf_dir.rmdir()


async def test_the_template_is_filled_in_and_counts_at_once(node: Node, template: Path) -> None:
    without_configuration(node)
    assert not node.cni.status.ready
    writer = pod_cidr(node, template)
    writer.update("10.1.0.0/24,fd00:1::/64")
    assert node.cni.default_network().name == "from-cidr"
    file = node.conf_dir / FILE_NAME
    assert file.stat().st_mode & 0o777 == 0o644
    assert json.loads(file.read_bytes())["plugins"][0]["ranges"] == ["10.1.0.0/24", "fd00:1::/64"]
    writer.update("10.2.0.0/24")
    assert node.cni.default_network().plugins[0].conf["ranges"] == ["10.2.0.0/24"]
    assert [each.name for each in node.conf_dir.iterdir()] == [FILE_NAME]


async def test_nothing_is_written_where_another_file_defines_the_network(
    node: Node, template: Path
) -> None:
    pod_cidr(node, template).update("10.1.0.0/24")
    assert node.cni.default_network().name == "pods"
    assert not (node.conf_dir / FILE_NAME).exists()


async def test_a_broken_file_is_no_network_to_respect(node: Node, template: Path) -> None:
    without_configuration(node)
    node.conf_dir.mkdir()
    (node.conf_dir / "00-broken.conflist").write_text("{")
    pod_cidr(node, template).update("10.1.0.0/24")
    assert node.cni.default_network().name == "from-cidr"


async def test_without_a_template_or_an_address_nothing_is_written(
    node: Node, template: Path
) -> None:
    without_configuration(node)
    pod_cidr(node, None).update("10.1.0.0/24")
    pod_cidr(node, template).update("")
    assert not node.conf_dir.exists()


async def test_a_template_that_makes_no_configuration_changes_nothing(
    node: Node, template: Path
) -> None:
    without_configuration(node)
    writer = pod_cidr(node, template)
    writer.update("10.1.0.0/24")
    before = (node.conf_dir / FILE_NAME).read_bytes()
    template.write_text('{"name": "x", "plugins": []}')
    with pytest.raises(ConfigError, match=r"template\.json, filled in: plugins"):
        writer.update("10.2.0.0/24")
    template.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        writer.update("10.2.0.0/24")
    template.unlink()
    with pytest.raises(ConfigError, match=r"cni\.conf_template: .*can't be read"):
        writer.update("10.2.0.0/24")
    with pytest.raises(InvalidArgumentError, match="pod_cidr"):
        writer.update("everything")
    assert (node.conf_dir / FILE_NAME).read_bytes() == before


async def test_a_directory_that_cannot_be_written_is_named(node: Node, template: Path) -> None:
    without_configuration(node)
    assert node.cni.networks == {}
    node.conf_dir.write_text("in the way")
    with pytest.raises(CriShimError, match="writing the network configuration"):
        pod_cidr(node, template).update("10.1.0.0/24")
