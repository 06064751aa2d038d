"""The committed stubs are what the protos say, documented, and work with the installed gRPC."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from cri_shim._pb.admin.v1 import admin_pb2, admin_pb2_grpc
from cri_shim._pb.cri.v1 import api_pb2, api_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

ROOT = Path(__file__).parents[3]
PROTOS = ["cri/v1/api.proto", "cri/v1alpha2/api.proto", "admin/v1/admin.proto"]


def check_stubs(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(root / "api/generate.sh"), "--check"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copied_root(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "api", tmp_path / "api")
    shutil.copytree(ROOT / "cri_shim/_pb", tmp_path / "cri_shim/_pb")
    return tmp_path


def test_the_stubs_are_fresh() -> None:
    checked = check_stubs(ROOT)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_changed_proto_makes_the_stubs_stale_and_the_check_writes_nothing(
    copied_root: Path,
) -> None:
    proto = copied_root / "api/admin/v1/admin.proto"
    stub = copied_root / "cri_shim/_pb/admin/v1/admin_pb2.py"
    proto.write_text(proto.read_text() + "message Added {}\n")
    before = stub.read_bytes()

    checked = check_stubs(copied_root)

    assert checked.returncode == 1
    assert "stale: cri_shim/_pb/admin/v1/admin_pb2.py" in checked.stdout
    assert "api/generate.sh" in checked.stderr
    assert stub.read_bytes() == before


def test_a_stub_without_a_proto_is_stale(copied_root: Path) -> None:
    (copied_root / "cri_shim/_pb/admin/v1/forgotten_pb2.py").write_text("")
    checked = check_stubs(copied_root)
    assert checked.returncode == 1
    assert "forgotten_pb2.py" in checked.stdout


@pytest.mark.parametrize("proto", PROTOS)
def test_every_service_call_message_and_enum_says_what_it_is_for(
    proto: str, tmp_path: Path
) -> None:
    file = compile_with_comments(proto, tmp_path / "set.pb")
    commented = {
        tuple(place.path)
        for place in file.source_code_info.location
        if place.leading_comments.strip()
    }
    assert [name for path, name in declarations(file) if path not in commented] == []


def compile_with_comments(proto: str, output: Path) -> FileDescriptorProto:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            "--proto_path=cri_shim/_pb=.",  # as api/generate.sh maps it: protos import each other by these names
            "--include_source_info",
            f"--descriptor_set_out={output}",
            f"cri_shim/_pb/{proto}",
        ],
        cwd=ROOT / "api",
        check=True,
    )
    return FileDescriptorSet.FromString(output.read_bytes()).file[0]


def declarations(file: FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    """Path (as source info counts) and name of what needs a comment; the numbers are descriptor.proto's."""
    for s, service in enumerate(file.service):
        yield (6, s), service.name
        for m, method in enumerate(service.method):
            yield (6, s, 2, m), f"{service.name}.{method.name}"
    for m, message in enumerate(file.message_type):
        yield (4, m), message.name
        for e, inner in enumerate(message.enum_type):
            yield (4, m, 4, e), f"{message.name}.{inner.name}"
    for e, enum in enumerate(file.enum_type):
        yield (5, e), enum.name


async def name_itself(_: Any, request: api_pb2.VersionRequest, context: Any) -> Any:
    return api_pb2.VersionResponse(version=request.version, runtime_name="named")


async def count_bytes(_: Any, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
    done = 0
    async for request in requests:
        done += len(request.chunk)
    progress = admin_pb2.ImportProgress(step="counting", done_bytes=done)
    yield admin_pb2.ImportImageResponse(progress=progress)


@pytest.mark.asyncio
async def test_stubs_and_servicers_talk_to_each_other(tmp_path: Path) -> None:
    # Made from parts, since one call of each service is enough here.
    runtime_type = type("R", (api_pb2_grpc.RuntimeServiceServicer,), {"Version": name_itself})
    admin_type = type("A", (admin_pb2_grpc.AdminServicer,), {"ImportImage": count_bytes})
    server = grpc.aio.server()
    api_pb2_grpc.add_RuntimeServiceServicer_to_server(runtime_type(), server)
    admin_pb2_grpc.add_AdminServicer_to_server(admin_type(), server)
    address = f"unix://{tmp_path}/s"
    server.add_insecure_port(address)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            runtime = api_pb2_grpc.RuntimeServiceStub(channel)
            version = await runtime.Version(api_pb2.VersionRequest(version="0.1.0"))
            assert (version.version, version.runtime_name) == ("0.1.0", "named")

            chunks = [admin_pb2.ImportImageRequest(chunk=b"x" * size) for size in (10, 32)]
            answers = admin_pb2_grpc.AdminStub(channel).ImportImage(iter(chunks))
            assert [answer.progress.done_bytes async for answer in answers] == [42]
    finally:
        await server.stop(None)
