"""Attacks by images, and by registries."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from functools import partial
from typing import TYPE_CHECKING

from cri_shim._pb.admin.v1 import admin_pb2 as admin
from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.image.manifest import MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, digest_of
from tests import images
from tests.fakes.registry import MANIFEST_TYPE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.tenants.tenant import Tenant

PULLS, LAYERS_EACH = 4, 4
"""Together more than a daemon downloads at one time."""
BYTE_EVERY_S = 5.0
LAYER_BYTES = 1 << 20
ENTRIES = 3_000
LAYERS, LABELS = 127, 10_000
LARGE_DOCUMENTS = 3
"""Of manifests and configurations at their limits, so many; an index may name each as often as it likes."""


def registry_that_drips(tenant: Tenant) -> None:
    """Pulls of layers that come byte by byte, of an image each."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="registry that drips")
    thread.start()
    server, port = asyncio.run_coroutine_threadsafe(_serve_drips(), loop).result(10)
    tenant.begin()

    def pull(number: int) -> None:
        image = api.ImageSpec(image=f"127.0.0.1:{port}/drips/{number}:1")
        tenant.client.images.PullImage(api.PullImageRequest(image=image), timeout=tenant.left_s())

    try:
        tenant.at_once(
            *[partial(tenant.again_and_again, partial(pull, number)) for number in range(PULLS)]
        )
    finally:
        asyncio.run_coroutine_threadsafe(_end(server), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _serve_drips() -> tuple[asyncio.Server, int]:
    """Manifests and configurations at once, layers a byte every few seconds."""
    documents: dict[str, bytes] = {}
    sizes: dict[str, int] = {}
    for number in range(PULLS):
        layers = [
            images.layer(images.file(f"file-{number}", os.urandom(LAYER_BYTES)))
            for _ in range(LAYERS_EACH)
        ]
        sizes.update({f"blobs/{layer.digest}": len(layer.blob) for layer in layers})
        config = images.config_of(layers)
        documents[f"blobs/{digest_of(config)}"] = config
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [_descriptor(layer.media_type, layer.blob) for layer in layers],
        }
        documents[f"drips/{number}/manifests/1"] = json.dumps(manifest).encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split()[1].decode()
            found = next((d for name, d in documents.items() if path.endswith(name)), None)
            name = path[max(path.find("blobs/"), 0) :]
            size = sizes[name] if found is None else len(found)
            writer.write(
                f"HTTP/1.1 200 OK\r\nContent-Type: {MANIFEST_TYPE}\r\n"
                f"Content-Length: {size}\r\nConnection: close\r\n\r\n".encode()
            )
            if head.startswith(b"GET"):
                if found is not None:
                    writer.write(found)
                while found is None:
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(BYTE_EVERY_S)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the daemon has given up, as it should
        finally:
            writer.transport.abort() if writer.is_closing() else writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


async def _end(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def index_of_thousands(tenant: Tenant) -> None:
    """Archives whose index names thousands of images, with documents that are as large as they may be."""
    archive = tenant.directory / "many.tar"
    archive.write_bytes(_archive())
    tenant.begin()
    tenant.again_and_again(lambda: _import(tenant, archive))


def layers_and_labels(tenant: Tenant) -> None:
    """An image of many layers and labels, of which everything is asked that can be, before it goes again."""
    name = "test.example/layers:1"
    archive = tenant.directory / "layers.tar"
    layers = [images.layer(images.file(f"file-{number}", b"x")) for number in range(LAYERS)]
    labels = {f"label-{number}": "x" * 300 for number in range(LABELS)}
    archive.write_bytes(images.oci_archive(*layers, name=name, labels=labels, user="u" * 100_000))
    image = api.ImageSpec(image=name)
    client = tenant.client
    tenant.begin()

    def come_and_go() -> None:
        client.import_image(archive)
        list(client.admin.CheckImages(admin.CheckImagesRequest(images=[image]), timeout=600))
        for _ in client.admin.ExportImage(admin.ExportImageRequest(images=[image]), timeout=600):
            pass
        client.images.ListImages(api.ListImagesRequest(), timeout=60)
        client.images.ImageStatus(api.ImageStatusRequest(image=image, verbose=True), timeout=60)
        client.remove_image(name)

    tenant.again_and_again(come_and_go)
    client.remove_image(name)


def _import(tenant: Tenant, archive: Path) -> None:
    for image in tenant.client.import_image(archive):
        for name in image.names:
            tenant.client.remove_image(name)


def _archive() -> bytes:
    layer = images.layer(images.file("file", b"x"))
    members = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
    members["blobs/" + layer.digest.replace(":", "/")] = layer.blob
    entries = []
    for number in range(LARGE_DOCUMENTS):
        config = images.config_of([layer], labels=_ballast(number, MAX_CONFIG_BYTES))
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
                "layers": [_descriptor(layer.media_type, layer.blob)],
                "annotations": _ballast(number, MAX_MANIFEST_BYTES),
            }
        ).encode()
        for document in (config, manifest):
            members["blobs/" + digest_of(document).replace(":", "/")] = document
        entries.append(_descriptor(MANIFEST_TYPE, manifest))
    index = [
        {
            **entries[number % LARGE_DOCUMENTS],
            "annotations": {"org.opencontainers.image.ref.name": f"test.example/many:{number}"},
        }
        for number in range(ENTRIES)
    ]
    members["index.json"] = json.dumps({"schemaVersion": 2, "manifests": index}).encode()
    return images.member_tar(members)


def _ballast(number: int, size: int) -> dict[str, str]:
    """Small strings, the dearest that a document can have, of nearly `size` bytes and under the bound on values."""
    count = min(90_000, size * 8 // 10 // 40)
    return {f"{number}-{key:08d}": "x" * (size * 8 // 10 // count - 20) for key in range(count)}


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}
