from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

from cri_shim.rpc.reflection import SERVICE_NAME, ReflectionHandler


def details(method: str) -> Any:
    return SimpleNamespace(method=method)


def test_only_its_own_method_is_answered() -> None:
    handler = ReflectionHandler(["runtime.v1.RuntimeService"])
    assert handler.service(details("/runtime.v1.RuntimeService/Version")) is None
    found = handler.service(details(f"/{SERVICE_NAME}/ServerReflectionInfo"))
    assert found is not None
    assert (found.request_streaming, found.response_streaming) == (True, True)


def test_the_name_is_the_packages() -> None:
    from grpc_reflection.v1alpha import reflection

    assert reflection.SERVICE_NAME == SERVICE_NAME


def test_servers_come_up_without_its_package() -> None:
    code = "import sys, cri_shim.rpc.listen; print('grpc_reflection.v1alpha' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "False"
