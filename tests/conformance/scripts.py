"""Configurations as a person would write them for crictl."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.conformance.crictl import Crictl

_numbers = itertools.count(1)
TALKER = "echo out; echo err >&2; trap 'exit 3' TERM; while :; do sleep 1 & wait; done"
"""A shell script that writes to both streams and ends with status 3 when it is told to stop."""


def pod(log_dir: Path, **more: Any) -> dict[str, Any]:
    """A pod of a new name, with a label of that name."""
    name = f"script-{next(_numbers)}"
    return {
        "metadata": {"name": name, "namespace": "scripts", "uid": f"uid-{name}", "attempt": 1},
        "hostname": name,
        "log_directory": str(log_dir / name),
        "labels": {"app": name},
        "linux": {},
        **more,
    }


def container(image: str, command: Sequence[str], **more: Any) -> dict[str, Any]:
    """A container named `main`."""
    return {
        "metadata": {"name": "main"},
        "image": {"image": image},
        "command": list(command),
        "log_path": "main.log",
        "linux": {},
        **more,
    }


def started(crictl: Crictl, log_dir: Path, image: str, script: str) -> tuple[str, str]:
    """A pod with one container that runs a shell script; their IDs."""
    pod_file = crictl.file(pod(log_dir))
    pod_id = crictl("runp", pod_file)
    container_file = crictl.file(container(image, ["sh", "-c", script]))
    container_id = crictl("create", pod_id, container_file, pod_file)
    assert crictl("start", container_id) == container_id
    return pod_id, container_id
