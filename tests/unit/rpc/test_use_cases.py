from __future__ import annotations

import inspect

import pytest

from cri_shim.rpc import use_cases
from cri_shim.sandbox.container_events import ContainerEvents
from cri_shim.sandbox.containers import Containers
from cri_shim.sandbox.pod_stats import PodStats
from cri_shim.sandbox.pods import Pods
from cri_shim.sandbox.stats import Stats


@pytest.mark.parametrize(
    ("protocol", "real"),
    [
        (use_cases.Pods, Pods),
        (use_cases.Containers, Containers),
        (use_cases.Stats, Stats),
        (use_cases.PodStats, PodStats),
        (use_cases.Events, ContainerEvents),
    ],
)
def test_the_real_services_take_what_the_services_pass(protocol: type, real: type) -> None:
    methods = {
        name: method
        for name, method in vars(protocol).items()
        if inspect.isfunction(method) and not name.startswith("_")
    }
    assert methods
    for name, method in methods.items():
        offered = getattr(real, name)
        assert list(inspect.signature(offered).parameters) == list(
            inspect.signature(method).parameters
        ), name
        assert inspect.iscoroutinefunction(offered) == inspect.iscoroutinefunction(method), name
