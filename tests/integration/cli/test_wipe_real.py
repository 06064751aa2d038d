"""Everything of a node is taken away: by the daemon, which serves on, without it, after a crash; nothing of others."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cri_shim.ids import new_id
from tests.fakes.cni_plugin import install_plugin
from tests.harness.daemon import environment
from tests.integration.cli.command_line import CommandLine, Ended, command_line
from tests.integration.scene import (
    CGROUP_DIR,
    NETNS_DIR,
    Pod,
    cgroups_of,
    processes_running,
    unique_seconds,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.daemon import Daemon, Daemons

pytestmark = pytest.mark.integration
SECONDS = unique_seconds()


class Wiped:
    """A daemon that is wiped, and what is left of its pods."""

    def __init__(self, daemon: Daemon, line: CommandLine, script: Path, image: str) -> None:
        self.daemon = daemon
        self._line = line
        self._script = script
        self._image = image
        self.leases = daemon.lease_dir
        self.plugin()

    def plugin(self, **verbs: dict[str, object]) -> None:
        self._script.write_text(json.dumps({"leases": str(self.leases), **verbs}))

    def populate(self) -> list[str]:
        """Pods and containers in every state; their IDs."""
        client = self.daemon.client
        busy, stopped, host = (
            Pod.run(client, self._image),
            Pod.run(client, self._image),
            Pod.run(client, self._image, client.pod_config(host_network=True)),
        )
        ids = [busy.start(busy.container("sleep", SECONDS)), busy.create(busy.container("true"))]
        ids.append(busy.start(busy.container("false")))
        ids.append(host.start(host.container("sleep", SECONDS)))
        client.stop_pod(stopped.id)
        return [busy.id, stopped.id, host.id, *ids]

    def wipe(self, *options: str) -> Ended:
        return self._line.run("wipe", "--yes", *options, "--config", str(self.daemon.config_file))

    def assert_nothing_left(self, ids: list[str]) -> None:
        daemon = self.daemon
        wait_until(lambda: not processes_running(SECONDS))
        left = [
            *(path for directory in ("sandboxes", "containers", "damaged", "pending_deletes") for base in
              (daemon.root, daemon.state) for path in (base / directory).glob("*")),
            *(daemon.state / "exits").iterdir(),
            *(daemon.state / "runtime").glob("*/*"),
            *(path for each in ids for path in cgroups_of(each)),
            *(NETNS_DIR / f"cri-{each[:32]}" for each in ids if (NETNS_DIR / f"cri-{each[:32]}").exists()),
            *self.leases.iterdir(),
            *(line for line in Path("/proc/self/mountinfo").read_text().splitlines()
              if str(daemon.state) in line or str(daemon.root) in line),
            *CGROUP_DIR.glob(f"*{daemon.cgroup_parent}"),
        ]  # fmt: skip
        assert not left


@pytest.fixture
def wiped(daemons: Daemons, archives: list[Path], tmp_path: Path, image: str) -> Iterator[Wiped]:
    install_plugin(tmp_path / "plugins", "scripted")
    plugin = {"type": "scripted", "script_file": str(tmp_path / "script.json")}
    daemon = daemons.create(
        settings={"cni": {"plugin_dirs": [str(tmp_path / "plugins")], "timeout": "1s"}},
        conflist={"cniVersion": "1.0.0", "name": "wiped", "plugins": [plugin]},
    )
    try:
        daemon.lease_dir.mkdir()
        with command_line() as line:
            made = Wiped(daemon, line, tmp_path / "script.json", image)
            daemon.start()
            daemon.warm_up(archives)
            yield made
    finally:
        daemons.destroy(daemon)


def test_a_node_is_wiped_with_the_daemon_without_it_and_after_a_crash(wiped: Wiped) -> None:
    daemon, client = wiped.daemon, wiped.daemon.client
    others = subprocess.run(["ip", "netns", "add", f"cri-{new_id()[:32]}"], check=True)
    assert others.returncode == 0
    other = Path(NETNS_DIR, others.args[-1])
    try:
        # The daemon does it, and goes on serving.
        ids = wiped.populate()
        ended = wiped.wipe()
        assert ended.code == 0, ended
        assert "removing pods" in ended.out
        assert "removed: 3 pods, 4 containers" in ended.out
        assert (client.pods(), client.containers()) == ([], [])
        wiped.assert_nothing_left(ids)
        # A plugin that does not let go, and a damaged record, after a crash.
        ids = wiped.populate()
        daemon.kill9()
        (daemon.root / "sandboxes" / ids[0] / "record.json").write_text("{")
        (daemon.root / "containers" / ids[3] / "status.json").write_text("{")
        wiped.plugin(DEL={"do": "fail", "msg": "no way", "after_effect": False})
        ended = wiped.wipe()
        assert ended.code == 1, ended
        assert "no way" in ended.out
        assert f"left: attachment of {ids[0]}" in ended.out
        assert "`cri-shim wipe` again" in ended.out
        # Again, and it is all gone.
        wiped.plugin()
        ended = wiped.wipe("--images")
        assert ended.code == 0, ended
        assert "1 image" in ended.out or "2 images" in ended.out
        wiped.assert_nothing_left(ids)
        assert list((daemon.root / "images/blobs/sha256").iterdir()) == []
        assert other.exists(), "the namespace of somebody else"
        # And once more, where nothing is; a daemon starts on it all the same.
        assert wiped.wipe().code == 0
        daemon.start()
        assert client.pods() == []
        assert "nothing was removed" in unanswered(daemon)
    finally:
        subprocess.run(["ip", "netns", "delete", other.name], check=True)


def unanswered(daemon: Daemon) -> str:
    """What the command says to somebody who doesn't say yes."""
    asked = subprocess.run(
        [*daemon.command_line()[:3], "wipe", "--config", str(daemon.config_file)],
        env=environment(), input="no\n", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert asked.returncode == 1
    return asked.stdout
