"""The host port, and the fake kernel that unit tests hand in for it."""

from __future__ import annotations

import inspect
from typing import cast

import pytest

from cri_shim.host.port import Host
from tests.fakes.kernel import Kernel
from tests.fakes.points import Points

OPERATIONS = [name for name in vars(Host) if not name.startswith("_")]


@pytest.mark.parametrize(
    "name",
    [n for n in OPERATIONS if hasattr(Kernel, n) and n != "watch_pids"],
)
def test_the_fake_takes_what_the_node_takes(name: str) -> None:
    real = inspect.signature(getattr(Host, name)).parameters
    fake = inspect.signature(getattr(Kernel(Points()), name)).parameters
    assert [(p.name, p.kind, p.default) for p in fake.values()] == [
        (p.name, p.kind, p.default) for p in real.values()
    ]


def test_what_the_fake_lacks_is_an_error_and_no_call_of_the_kernel() -> None:
    lacking = [name for name in OPERATIONS if not hasattr(Kernel, name)]
    assert lacking == ["run_in_netns"]  # no unit test of the harness makes sockets in a pod
    with pytest.raises(AttributeError, match="run_in_netns"):
        cast("Host", Kernel(Points())).run_in_netns  # noqa: B018
