"""Templates of network configurations: the part of Go's language that such templates use."""

from __future__ import annotations

import json

import pytest

from cri_shim.cni.conf import parse_conflist
from cri_shim.cni.template import parse_pod_cidrs, render_template
from cri_shim.errors import ConfigError, InvalidArgumentError

BOTH = ("10.1.0.0/24", "fd00:1::/64")


def render(template: str, *cidrs: str) -> str:
    return render_template(template, cidrs or BOTH, source="t")


def test_a_template_as_containerds_users_write_them_becomes_a_configuration() -> None:
    template = """{
  "cniVersion": "1.0.0", "name": "k8s-pod-network",
  "plugins": [{
    "type": "ptp", "mtu": 1460,
    "ipam": {
      "type": "host-local",
      {{- /* both families */ -}}
      "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
      "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]
    }
  }]
}"""
    network = parse_conflist(render(template).encode(), source="t")
    ipam = network.plugins[0].conf["ipam"]
    assert ipam["ranges"] == [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]]
    assert ipam["routes"] == [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{.PodCIDR}}", "10.1.0.0/24"),
        ("{{ .PodCIDR }}", "10.1.0.0/24"),
        ("a  {{- .PodCIDR -}}  b", "a10.1.0.0/24b"),
        ("a {{.PodCIDR -}} \n {{- .PodCIDR}} b", "a 10.1.0.0/2410.1.0.0/24 b"),
        ("{{range .Routes}}<{{.}}>{{end}}", "<0.0.0.0/0><::/0>"),
        ("{{range $r := .Routes}}<{{$r}}>{{end}}", "<0.0.0.0/0><::/0>"),
        ("{{range $i, $r := .Routes}}{{$i}}{{end}}", "01"),
        (
            "{{range .Routes}}{{range .PodCIDRRanges}}.{{end}}{{end}}",
            "....",
        ),
        ("{{if .Routes}}yes{{end}}", "yes"),
        ("no braces {at} all", "no braces {at} all"),
    ],
)
def test_what_templates_may_say(template: str, text: str) -> None:
    assert render(template) == text


def test_routes_are_those_of_the_families_that_there_are() -> None:
    listed = '[{{range $i, $r := .Routes}}{{if $i}},{{end}}"{{$r}}"{{end}}]'
    assert json.loads(render(listed, "fd00::/64")) == ["::/0"]
    assert json.loads(render(listed, "10.0.0.0/8")) == ["0.0.0.0/0"]


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("\n{{.PodCidr}}", "t: line 2: {{.PodCidr}}: no such value here"),
        ("{{.Routes}}", "it is a list: iterate over it with range"),
        ("{{range .PodCIDR}}{{end}}", ".PodCIDR is not a list"),
        ("{{range 1 2}}{{end}}", "write {{range"),
        ("{{range .Routes}}", "its {{end}} is missing"),
        ("{{if .PodCIDR}}", "its {{end}} is missing"),
        ("{{end}}", "no block for it to end"),
        ("{{template}}", "not supported"),
        ("{{.PodCIDR | printf}}", "not supported"),
        ("{{$x}}", "no such value here"),
        ("{{.PodCIDR", "its closing }} is missing"),
    ],
)
def test_a_mistake_is_named_with_its_line(template: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        render(template)
    assert complaint in str(caught.value)


def test_ranges_are_read_from_a_comma_separated_list() -> None:
    assert parse_pod_cidrs("10.1.0.0/24, FD00:1::/64") == BOTH
    assert parse_pod_cidrs(" ") == ()


@pytest.mark.parametrize("text", ["10.1.0.1/24", "10.1.0.0/24,", 'x"', "10.0.0.0/8," * 20])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="pod_cidr"):
        parse_pod_cidrs(text)
