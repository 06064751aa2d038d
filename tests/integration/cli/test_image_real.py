"""An image's whole life by the image commands: through the daemon, and the same once more without it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests import images
from tests.harness.registry import docker_registry
from tests.integration.cli.command_line import CommandLine, Ended, command_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.daemon import Daemon
    from tests.harness.registry import DockerRegistry

pytestmark = pytest.mark.integration

WORD = "srv/word"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


class Node:
    """The commands of one node."""

    def __init__(self, line: CommandLine, daemon: Daemon) -> None:
        self._line = line
        self._options = ("--config", str(daemon.config_file))
        self.layers_dir = daemon.root / "layers"
        self.blobs_dir = daemon.root / "images/blobs/sha256"

    def run(self, *words: str) -> Ended:
        return self._line.run("image", *words, *self._options)

    def succeed(self, *words: str) -> str:
        ended = self.run(*words)
        assert ended.code == 0, (words, ended)
        return ended.out

    def tagged(self, name: str) -> dict[str, object] | None:
        found = json.loads(self.succeed("list", "--json"))
        return next((image for image in found if name in image["tags"]), None)

    def word_file(self) -> Path:
        [found] = [path for path in self.layers_dir.glob(f"*/{WORD}") if path.is_file()]
        return found


def layers(word: str) -> list[images.LayerBlob]:
    return [
        images.layer(
            images.directory("bin"), images.file("bin/tool", b"tool" * 1000), compression="gzip"
        ),
        images.layer(images.directory("srv"), images.file(WORD, word.encode()), compression="zstd"),
    ]


def live(node: Node, registry: DockerRegistry, tmp_path: Path, word: str) -> None:
    """Pull, list, export, remove, import, check, damage, repair, collect."""
    name = f"{registry.host}/team/{word}:1"
    registry.push(f"team/{word}", "1", *layers(word))
    pulled = node.succeed("pull", name).splitlines()
    assert pulled[-1].startswith(f"pulled {name} as ")
    image = node.tagged(name)
    assert image is not None
    # Exported twice it is the same to the byte, and what comes back is the same image.
    first, second = tmp_path / f"{word}.1.tar", tmp_path / f"{word}.2.tar"
    for archive in (first, second):
        node.succeed("export", name, str(archive))
    assert first.read_bytes() == second.read_bytes()
    assert node.succeed("rm", name).startswith(f"removed {name} (")
    assert node.tagged(name) is None
    assert "not found" in node.run("rm", name).err
    node.succeed("import", str(first))
    back = node.tagged(name)
    assert back is not None
    assert (back["id"], back["size"]) == (image["id"], image["size"])
    # A damage is found, told, and repaired from what is here.
    assert "no damage" in node.succeed("check", name)
    file = node.word_file()
    file.write_bytes(file.read_bytes()[::-1])
    damaged = node.run("check")
    assert damaged.code == 1
    assert f" of {name}" in damaged.out
    assert "to repair it: cri-shim image check --repair" in damaged.out
    assert not json.loads(node.run("check", "--json", name).out)["sound"]
    assert "repaired: " in node.succeed("check", "--repair", name)
    assert "no damage" in node.succeed("check", "--repair", name)
    assert node.word_file().read_text() == word
    # A damaged packed layer is pulled again.
    node.succeed("pull", name)
    blob = max(node.blobs_dir.iterdir(), key=lambda path: path.read_bytes()[:4] == ZSTD_MAGIC)
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    assert node.run("check", name).code == 1
    assert "repaired: " in node.succeed("check", "--repair", name)
    # A tag that moved leaves an image that is collected when asked for.
    registry.push(f"team/{word}", "1", *layers(word[::-1]))
    node.succeed("pull", name)
    assert "0 images" in node.succeed("gc")
    assert "would remove 1 image, " in node.succeed("gc", "--dry-run", "--untagged")
    assert "removed 1 image, " in node.succeed("gc", "--untagged")
    assert node.word_file().read_text() == word[::-1]
    node.succeed("rm", name)
    assert not list(node.layers_dir.glob(f"*/{WORD}"))


def test_an_image_lives_the_same_life_with_the_daemon_and_without(
    crash_daemon: Daemon, registry: DockerRegistry, tmp_path: Path
) -> None:
    with command_line() as line:
        node = Node(line, crash_daemon)
        live(node, registry, tmp_path, "running")
        crash_daemon.stop()
        live(node, registry, tmp_path, "stopped")
        # A daemon that holds its root and does not answer is no reason to write beside it.
        crash_daemon.start()
        moved = crash_daemon.socket.rename(crash_daemon.socket.with_suffix(".away"))
        refused = node.run("list")
        moved.rename(crash_daemon.socket)
    assert refused.code == 1
    assert f"cannot reach the daemon on {crash_daemon.socket}" in refused.err
    assert f"is in use by process {crash_daemon.pid}" in refused.err
