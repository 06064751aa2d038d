"""Checks a container's limits against the node, and translates them for the OCI runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.oci.spec.resources import build_resources, check_unchangeable, files_limit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cri_shim._pb.cri.v1 import api_pb2 as api
    from cri_shim.oci.spec.inputs import Spec
    from cri_shim.sandbox.spec.spec_facts import SpecFacts


class ContainerLimits:
    """Checks and translates limits."""

    def __init__(self, facts: SpecFacts) -> None:
        self._facts = facts

    def update_document(self, resources: api.LinuxContainerResources, pids_limit: int) -> Spec:
        """The document for the OCI runtime's update. Raises InvalidArgumentError that names the field."""
        document = build_resources(resources, self._facts.node)
        if pids_limit:
            document["pids"] = {"limit": pids_limit}
        return document

    def check_unchangeable(
        self, now: api.LinuxContainerResources, wanted: api.LinuxContainerResources
    ) -> None:
        """Raises UnsupportedError for a change that OCI runtimes cannot apply."""
        check_unchangeable(now, wanted, self._facts.node)

    def files_limit(self, annotations: Mapping[str, str], handler: str) -> int | None:
        """The limit of open files: None if not set, -1 for no limit. Raises InvalidArgumentError."""
        return files_limit(annotations, self._facts.node, self._facts.handler(handler))
