"""Write the default network's configuration from the node's pod addresses, which the kubelet sends, and a template.

Rules:
- Without a template nothing is written: a network add-on or the operator does that.
- Nothing is written while another file defines the default network: somebody put it there on purpose. The kubelet sends
  the addresses again at each of its starts. Our own file is replaced when the addresses change.
- The result is parsed as a configuration before it is written, so a bad template changes nothing.
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
    """Writes the configuration that the template gives."""

    def __init__(self, cni: Cni, *, conf_dir: Path, template: Path | None) -> None:
        self._cni = cni
        self._file = conf_dir / FILE_NAME
        self._template = template

    def update(self, pod_cidr: str) -> None:
        """Receive the ranges (comma-separated), and write the configuration if that is our part.

        Raises InvalidArgumentError for invalid ranges, ConfigError for a template that gives no valid configuration,
        CriShimError if the file can't be written.
        """
        ranges = parse_pod_cidrs(pod_cidr)
        log.info("received the node's pod addresses from the kubelet", pod_cidrs=list(ranges))
        if not ranges or self._template is None:
            return
        default = self._cni.default_file
        if default is not None and default != self._file:
            log.info(
                "another file defines the default network; the template is not used",
                file=str(default),
                template=str(self._template),
            )
            return
        text = render_template(self._read(self._template), ranges, source=str(self._template))
        network = parse_conflist(text.encode(), source=f"{self._template}, filled in")
        with host_step(f"writing the network configuration {self._file}"):
            self._file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            # Mode 0644: network add-ons and people read it, too.
            write_atomic(self._file, text.encode(), mode=0o644, fsync=True)
        log.info("wrote the network configuration", file=str(self._file), network=network.name)

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
