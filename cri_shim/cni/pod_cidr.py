"""The node's pod addresses, as the kubelet tells them, made into the default network by a template of the operator's.

Rules:
- Without a template nothing is written: a network add-on does that, or the operator.
- Nothing is written while another file defines the default network: that one has been put there on purpose, and the
  kubelet tells the addresses again at each of its starts. A file of our own is replaced when the addresses change.
- What would be written is read as a configuration first: a bad template changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from cri_shim.cni.conf import MAX_CONF_BYTES, parse_conflist
from cri_shim.cni.template import parse_pod_cidrs, render_template
from cri_shim.errors import ConfigError, host_step
from cri_shim.host.files import read_bounded, write_atomic

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.cni.network import Cni

log = structlog.get_logger()

FILE_NAME = "10-cri-shim-pod-cidr.conflist"


class PodCidr:
    """Writes the configuration made from the template."""

    def __init__(self, cni: Cni, *, conf_dir: Path, template: Path | None) -> None:
        self._cni = cni
        self._file = conf_dir / FILE_NAME
        self._template = template

    def update(self, pod_cidr: str) -> None:
        """Take note of the ranges (comma-separated), and write the configuration if that is ours to do.

        Raises InvalidArgumentError for what are no ranges, ConfigError for a template that makes no configuration of
        them, CriShimError where it can't be written.
        """
        ranges = parse_pod_cidrs(pod_cidr)
        log.info("kubelet told the pod addresses of this node", pod_cidrs=list(ranges))
        if not ranges or self._template is None:
            return
        default = self._cni.default_file
        if default is not None and default != self._file:
            log.info(
                "another file defines the default network: nothing is made from the template",
                file=str(default),
                template=str(self._template),
            )
            return
        text = render_template(self._read(self._template), ranges, source=str(self._template))
        network = parse_conflist(text.encode(), source=f"{self._template}, filled in")
        with host_step(f"writing the network configuration {self._file}"):
            self._file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            # Others read it, too: network add-ons, people.
            write_atomic(self._file, text.encode(), mode=0o644, fsync=True)
        log.info("network configuration written", file=str(self._file), network=network.name)

    @staticmethod
    def _read(template: Path) -> str:
        try:
            return read_bounded(template, MAX_CONF_BYTES).decode()
        except OSError as error:
            raise ConfigError(
                f"cni.conf_template: {template}: can't be read: {error.strerror}"
            ) from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"cni.conf_template: {template}: not UTF-8: {error}") from error
