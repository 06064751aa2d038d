"""What a machine lacks is said in one line that can be typed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.harness import node

if TYPE_CHECKING:
    from pathlib import Path


def test_each_missing_tool_is_named_with_its_package(tmp_path: Path) -> None:
    found = node.missing(path=str(tmp_path), plugin_dirs=(tmp_path,))
    named = {item.what: item.package for item in found}
    assert named["conmon"] == "conmon"
    assert named["nft"] == "nftables"
    assert named["CNI plugin portmap"] == "containernetworking-plugins"


def test_a_dynamic_busybox_is_not_enough(tmp_path: Path) -> None:
    header = bytearray(64 + 56)
    header[:6] = b"\x7fELF\x02\x01"
    header[32] = 64  # where the program headers start
    header[54], header[56] = 56, 1  # their size and count
    header[64] = 3  # PT_INTERP
    busybox = tmp_path / "busybox"
    busybox.write_bytes(header)
    busybox.chmod(0o755)
    found = node.missing(path=str(tmp_path), plugin_dirs=(tmp_path,))
    assert "a statically linked busybox" in {item.what for item in found}


def test_the_sentence_is_one_line_with_one_command_for_all_packages() -> None:
    sentence = node.sentence(
        [
            node.Missing("runc", "runc"),
            node.Missing("CNI plugin bridge", "containernetworking-plugins"),
            node.Missing("CNI plugin portmap", "containernetworking-plugins"),
            node.Missing("root", remedy="run the tests as root"),
        ]
    )
    assert "\n" not in sentence
    assert sentence.endswith(
        "missing runc, CNI plugin bridge, CNI plugin portmap, root; "
        "do: run the tests as root; apt-get install -y containernetworking-plugins runc"
    )
