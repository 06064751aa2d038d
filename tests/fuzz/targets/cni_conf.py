"""Files of the CNI configuration directory, and templates of them."""

from __future__ import annotations

import msgspec

from cri_shim.cni.attachment import is_network_name
from cri_shim.cni.conf import (
    KNOWN_VERSIONS,
    build_plugin_config,
    parse_conf,
    parse_conflist,
    parse_list_head,
)
from cri_shim.cni.template import parse_pod_cidrs, render_template
from cri_shim.errors import ConfigError, InvalidArgumentError
from tests.fuzz import assert_sound

SEEDS = [
    b'{"cniVersion":"1.0.0","cniVersions":["1.1.0"],"name":"pods","disableCheck":"true","disableGC":false,'
    b'"plugins":[{"type":"bridge","ipam":{"type":"host-local"}},'
    b'{"type":"portmap","capabilities":{"portMappings":true}}]}',
    b'{"name":"pods","loadOnlyInlinedPlugins":true,"plugins":[{"type":"x","cni.dev/valid-attachments":[]}]}',
    b'{"cniVersion":"0.3.1","name":"pods","type":"ptp","runtimeConfig":{"a":1},"prevResult":{}}',
    b'{"cniVersion":"9.9","name":"../x","plugins":[{"type":"../sh"}]}',
    b'{"ranges":[{{range $i, $r := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet":"{{$r}}"}]{{end}}]}',
    b"{{.PodCIDR}} {{- range .Routes -}} {{.}} {{- end}}{{/* x */}}",
    b"10.1.0.0/24, fd00::/64",
]
WORDS = [
    *(
        b'"plugins":[',
        b'{"type":"x"}',
        b'"name":"',
        b'"cniVersions":[',
        b'"capabilities":{"a":true}',
    ),
    *(b"{{range .Routes}}", b"{{end}}", b"{{if ", b"}}", b"{{$", b"{{- ", b" -}}", b".PodCIDR"),
    *(b"/", b"..", b"\\u0000", b"\\ud800", b"\xff", b"null", b"1e999"),
]
_PORTS = [{"hostPort": 80, "containerPort": 80}]


def fuzz(data: bytes) -> None:
    try:
        head = parse_list_head(data, source="f")
        assert is_network_name(head.name)
    except ConfigError as error:
        assert_sound(error, "f: ")
    for parse in (parse_conflist, parse_conf):
        try:
            network = parse(data, source="f")
        except ConfigError as error:
            assert_sound(error, "f: ")
            continue
        assert is_network_name(network.name)
        assert network.cni_version in KNOWN_VERSIONS
        # What the result cache keeps means the same.
        again = parse_conflist(network.document, source="cache")
        assert (again.name, again.cni_version) == (network.name, network.cni_version)
        assert [plugin.type for plugin in again.plugins] == [p.type for p in network.plugins]
        for plugin in network.plugins:
            assert "/" not in plugin.type
            told = msgspec.json.decode(
                build_plugin_config(network, plugin, capability_args={"portMappings": _PORTS})
            )
            assert told["name"] == network.name
            assert told["cniVersion"] == network.cni_version
            assert "cni.dev/valid-attachments" not in told
    text = data.decode("utf-8", "replace")
    try:
        ranges = parse_pod_cidrs(text)
    except InvalidArgumentError as error:
        assert_sound(error, "pod_cidr: ")
        ranges = ("10.1.0.0/24", "fd00::/64")
    try:
        render_template(text, ranges or ("10.1.0.0/24",), source="t")
    except ConfigError as error:
        assert_sound(error, "t: line ")
