from __future__ import annotations

from typing import Any

import pytest

from cri_shim.config.decode import decode
from cri_shim.config.load import merge
from cri_shim.config.model import Config
from cri_shim.config.render import to_tree
from cri_shim.config.rules import find_problems

TLS = {"cert": "/c", "key": "/k", "client_ca": "/a"}


def problems(tree: dict[str, Any]) -> list[str]:
    config, known = decode(merge(to_tree(Config()), tree))
    return [f"{problem.path}: {problem.message}" for problem in find_problems(config, known)]


@pytest.mark.parametrize(
    ("tree", "complaint"),
    [
        ({"root": "/x", "state": "/x"}, "state: is inside root, or contains it"),
        ({"root": "/x", "state": "/x/y"}, "state: is inside root, or contains it"),
        ({"root": "/x/y", "state": "/x"}, "state: is inside root, or contains it"),
        ({"root": "/"}, "root: is the root directory"),
        ({"listen": ["unix:///a", "tcp://1.2.3.4:5"]}, "listen[1]: requires TLS"),
        ({"tls": {"cert": "/c"}}, 'tls.key: is not set (""), allowed: a path, since cert is set'),
        ({"tls": {"cert": "/c", "key": "/k"}}, "tls.client_ca: is not set"),
        ({"streaming": {"tls": {"client_ca": "/a"}}}, "streaming.tls.cert: is not set"),
        ({"streaming": {"port": 10351}}, "metrics.address: is also the address of streaming.port"),
        (
            {"tls": TLS, "listen": ["tcp://127.0.0.1:10350"]},
            "listen[0]: is also the address of streaming.port (127.0.0.1:10350)",
        ),
        (
            {"runtime": {"default_handler": "runsc"}},
            "runtime.default_handler: is not a configured handler",
        ),
        (
            {"cgroup_driver": "systemd", "sandbox": {"cgroup_parent": "/pods"}},
            'sandbox.cgroup_parent: is not a slice ("/pods")',
        ),
        (
            {"cgroup_driver": "cgroupfs", "sandbox": {"cgroup_parent": "pods.slice"}},
            'sandbox.cgroup_parent: is not an absolute path ("pods.slice")',
        ),
        ({"sandbox": {"cgroup_parent": "/a/../b"}}, "sandbox.cgroup_parent: contains .."),
        (
            {"security": {"default_ulimits": {"nproc": {"soft": 5, "hard": 3}}}},
            "security.default_ulimits.nproc.soft: is above hard (5), allowed: at most 3",
        ),
        (
            {"security": {"default_ulimits": {"core": {"soft": -1, "hard": 0}}}},
            "security.default_ulimits.core.soft: is above hard (-1)",
        ),
        (
            {"security": {"default_ulimits": {"nofile": {"soft": 5, "hard": -1}}}},
            "security.default_ulimits.nofile: is unlimited",
        ),
        ({"tracing": {"sampling_per_million": 1}}, "tracing.endpoint: is not set"),
    ],
)
def test_keys_that_contradict_each_other_are_told(tree: dict[str, Any], complaint: str) -> None:
    found = problems(tree)
    assert complaint in found[0]


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"tls": TLS, "listen": ["unix:///a", "tcp://1.2.3.4:5"]},
        {"streaming": {"port": 0}, "metrics": {"address": "127.0.0.1:0"}},
        {"streaming": {"port": 10351}, "metrics": {"address": ""}},
        {"streaming": {"tls": {"cert": "/c", "key": "/k"}}},
        {"security": {"default_ulimits": {"core": {"soft": -1, "hard": -1}}}},
        {"cgroup_driver": "systemd", "sandbox": {"cgroup_parent": "pods.slice"}},
        {"root": "/x/root", "state": "/x/state"},
    ],
)
def test_keys_that_agree_are_left_alone(tree: dict[str, Any]) -> None:
    assert problems(tree) == []


def test_a_mistake_is_not_told_twice() -> None:
    assert problems({"tls": {"cert": "relative", "key": "/k"}}) == []
    assert problems({"root": 5, "state": "/var/lib/cri-shim"}) == []
