"""All attacks, by name."""

from __future__ import annotations

from typing import Final

from cri_shim.sandbox.launch import MAX_OF_POD
from tests.faults.tenants import containers, files, images, requests, streams
from tests.faults.tenants.tenant import Attack

ATTACKS: Final = {
    "values of the environment": Attack(requests.values_of_the_environment),
    "long texts": Attack(requests.long_texts),
    "long commands": Attack(requests.long_commands),
    "values of sysctls": Attack(requests.values_of_sysctls),
    "host ports": Attack(requests.host_ports),
    "nested mounts": Attack(requests.nested_mounts, cores=MAX_OF_POD),
    "host paths that never answer": Attack(files.host_paths_that_never_answer),
    "accounts in a FIFO of the container": Attack(
        files.accounts_in_a_fifo_of_the_container, cores=1
    ),
    "accounts in a FIFO of the node": Attack(files.accounts_in_a_fifo_of_the_node, cores=1),
    "accounts of megabytes": Attack(files.accounts_of_megabytes, cores=MAX_OF_POD),
    "accounts in a FIFO in many pods": Attack(files.accounts_in_a_fifo_in_many_pods, cores=1),
    "requests that wait": Attack(files.requests_that_wait, cores=1),
    "processes of an exec": Attack(containers.processes_of_an_exec, cores=2),
    "files of the pod": Attack(containers.files_of_the_pod, cores=1),
    "files of a layer": Attack(containers.files_of_a_layer, cores=1),
    "data byte by byte": Attack(streams.data_byte_by_byte, sessions=1, cores=1),
    "headers that inflate": Attack(streams.headers_that_inflate, sessions=1, cores=1),
    "rapid resets": Attack(streams.rapid_resets, sessions=1, cores=1),
    "connections that ask nothing": Attack(streams.connections_that_ask_nothing, cores=1),
    "registry that drips": Attack(images.registry_that_drips),
    "layers and labels": Attack(images.layers_and_labels, cores=1),
    "index of thousands": Attack(images.index_of_thousands, cores=1),
}
