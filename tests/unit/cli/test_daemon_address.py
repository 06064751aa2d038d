from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import pytest

from cri_shim.cli import daemon_address
from cri_shim.errors import ConfigError, UnavailableError

if TYPE_CHECKING:
    from pathlib import Path


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    daemon_address.add_options(parser)
    return parser.parse_args(words)


def test_the_socket_is_the_first_unix_listener_of_the_configuration(tmp_path: Path) -> None:
    arguments = parsed("--set", f'listen=["unix://{tmp_path}/one", "unix://{tmp_path}/two"]')
    with pytest.raises(UnavailableError, match=f"{tmp_path}/one"):
        daemon_address.connect(arguments)


def test_a_socket_that_is_named_wins(tmp_path: Path) -> None:
    arguments = parsed("--socket", f"{tmp_path}/s", "--set", f'listen=["unix://{tmp_path}/one"]')
    with pytest.raises(UnavailableError, match=f"{tmp_path}/s: there is no such socket"):
        daemon_address.connect(arguments)


def test_a_daemon_on_the_network_only_can_not_be_commanded(tmp_path: Path) -> None:
    for name in ("cert", "key", "ca"):
        (tmp_path / name).write_text("")
    tls = f"tls={{cert: {tmp_path}/cert, key: {tmp_path}/key, client_ca: {tmp_path}/ca}}"
    arguments = parsed("--set", 'listen=["tcp://127.0.0.1:1"]', "--set", tls)
    with pytest.raises(ConfigError, match="use --socket PATH"):
        daemon_address.connect(arguments)
