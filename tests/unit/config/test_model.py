"""The defaults, as the interface gives them: a change here is a change of the contract."""

from __future__ import annotations

from cri_shim.config.document import parse_document
from cri_shim.config.model import Config
from cri_shim.config.render import to_tree

CONTRACT = """
root: /var/lib/cri-shim
state: /run/cri-shim
listen: ["unix:///run/cri-shim/cri-shim.sock"]
socket: {group: root, mode: "0660"}
tls: {cert: "", key: "", client_ca: ""}
cgroup_driver: auto
log: {level: info, format: auto}
metrics: {address: "127.0.0.1:10351"}
tracing: {endpoint: "", sampling_per_million: 0}
streaming:
  address: 127.0.0.1
  port: 10350
  base_url: ""
  token_ttl: 1m
  idle_timeout: 4h
  creation_timeout: 30s
  tls: {cert: "", key: "", client_ca: ""}
runtime:
  default_handler: runc
  monitor: conmon
  command_timeout: 30s
  start_timeout: 2m
  max_parallel_creates: 0
sandbox: {cgroup_parent: "", image: "", hostport: true}
cni: {plugin_dirs: [/opt/cni/bin, /usr/lib/cni], conf_dir: /etc/cni/net.d, timeout: 2m, use_internal_loopback: true,
      gc: auto, conf_template: ""}
images:
  registry_config: /etc/cri-shim/certs.d
  auth_file: ""
  max_parallel_downloads: 3
  pull_progress_timeout: 5m
  pinned: []
  discard_blobs: false
security:
  seccomp_default_profile: ""
  apparmor_profile: cri-shim-default
  selinux: auto
  default_capabilities: [CHOWN, DAC_OVERRIDE, FSETID, FOWNER, MKNOD, NET_RAW, SETGID, SETUID, SETFCAP, SETPCAP,
                         NET_BIND_SERVICE, SYS_CHROOT, KILL]
  default_ulimits: {}
  default_sysctls: {}
  hooks_dirs: [/etc/containers/oci/hooks.d]
  hook_spec: ""
  cdi_dirs: [/etc/cdi, /run/cdi]
  restrict_oom_score_adj: auto
  umask: "0022"
limits: {exec_sync_output: 16MiB, grpc_message: 16MiB}
stats:
  cache: 10s
  metrics: [cpu, disk, disk_io, hugetlb, memory, network, oom, pressure, process, spec, state]
events: {enabled: true}
"""

HANDLERS = """
runc: {path: runc}
crun: {path: crun}
kata: {path: kata-runtime, kind: vm, args: ["--kata-config", /usr/share/defaults/kata-containers/configuration.toml],
       pod_annotations: ["io.katacontainers.*", "com.github.containers.virtcontainers.*"]}
"""

HANDLER_DEFAULTS = {
    "kind": "oci",
    "args": [],
    "pod_annotations": [],
    "container_annotations": [],
    "privileged_without_host_devices": False,
    "device_ownership_from_security_context": False,
    "env": {},
    "config_path": "",
    "type_url": "",
}


def test_the_defaults_are_the_contract() -> None:
    tree = to_tree(Config())
    handlers = tree["runtime"].pop("handlers")
    assert tree == parse_document(CONTRACT, name="contract")
    written = parse_document(HANDLERS, name="handlers")
    assert isinstance(written, dict)
    assert handlers == {name: {**HANDLER_DEFAULTS, **given} for name, given in written.items()}
