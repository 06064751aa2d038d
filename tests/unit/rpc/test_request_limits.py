"""However large a field of a request is: what is done with it takes time in proportion, and errors stay short."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.message_factory import GetMessageClass

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim._pb.cri.v1alpha2 import api_pb2 as v1alpha2
from cri_shim.errors import CriShimError, InvalidArgumentError
from cri_shim.oci.spec.container import encode_spec
from cri_shim.quoting import MAX_TEXT_CHARS
from cri_shim.rpc import request_limits
from cri_shim.rpc.calls import MethodName, subject_of
from cri_shim.rpc.interceptor import _Codec
from cri_shim.rpc.redaction import redacted
from cri_shim.rpc.request_limits import (
    MAX_CHARS,
    MAX_ENTRIES,
    MAX_MAP_CHARS,
    MAX_REQUEST_BYTES,
    check_parts,
)
from cri_shim.rpc.status import MAX_TEXT_BYTES, answer_to
from cri_shim.sandbox.network.annotations import additional_networks, cni_args
from cri_shim.sandbox.network.host_ports import host_ports
from cri_shim.sandbox.spec.host_paths import lying_below
from cri_shim.sandbox.store.store import as_json
from tests.request_sizes import WORDS, Place, fill, places, request_names
from tests.unit.oci.spec.cases import container_spec, sandbox_spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

SIZES = (MAX_CHARS, 16_384, 65_536, 262_144)
LARGE_SIZES = (*SIZES, 1 << 20, 4 << 20, MAX_REQUEST_BYTES - 4096, 16 << 20)
MEASURABLE_S = 0.05
MAX_GROWTH = 4.0
"""Of the time beyond the growth of the size: what is quadratic grows by that of the size once more, some hundred."""
PLACES = [
    place
    for name in request_names()
    for place in places(api.DESCRIPTOR.message_types_by_name[name])
]


def served(method: str, raw: bytes) -> None:
    """What the server does with a request before its first effect; raises what it refuses."""
    kind = GetMessageClass(api.DESCRIPTOR.message_types_by_name[f"{method}Request"])
    request: Any = _Codec(
        MethodName("runtime.v1.RuntimeService", method), kind.FromString, None
    ).decoded(raw)
    assert len(str(subject_of(request))) < 8 * MAX_CHARS
    assert len(redacted(request)) <= 1024
    if method == "RunPodSandbox":
        hashlib.sha256(request.config.SerializeToString(deterministic=True))
        as_json(request.config)
        host_ports(request.config)
        additional_networks(request.config.annotations)
        cni_args(request.config.annotations)
        encode_spec(sandbox_spec(request.config))
    elif method == "CreateContainer":
        hashlib.sha256(request.config.SerializeToString(deterministic=True))
        as_json(request.config)
        encode_spec(container_spec(request.config))


def cpu_s(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def attempt(place: Place, word: str, size: int) -> tuple[float, str]:
    """CPU time of a request with one field that large, and the text of its refusal."""
    request = GetMessageClass(place.request)()
    fill(request, place, word, size)
    raw, refusal = request.SerializeToString(), ""

    def serve() -> None:
        nonlocal refusal
        try:
            served(place.request.name.removesuffix("Request"), raw)
        except CriShimError as error:
            refusal = str(error)
            answer = answer_to(error, "r1")
            assert len(answer.text.encode()) <= MAX_TEXT_BYTES
            assert answer.text.isprintable() or "\n" not in answer.text

    return cpu_s(serve), refusal


@pytest.mark.parametrize("name", request_names())
@pytest.mark.parametrize(
    ("sizes", "turn"),
    [
        pytest.param(SIZES, 0, id="some"),
        *(
            pytest.param(
                LARGE_SIZES,
                turn,
                id=f"large-{turn}",  # one by one: all words of a container's fields take minutes
                marks=[pytest.mark.slow, pytest.mark.timeout(900)],
            )
            for turn in range(len(WORDS))
        ),
    ],
)
def test_any_field_of_any_size_costs_in_proportion_and_is_refused_in_few_words(
    name: str, sizes: tuple[int, ...], turn: int
) -> None:
    for number, place in enumerate(place for place in PLACES if place.request.name == name):
        word = WORDS[(number + turn) % len(WORDS)]
        before_s, before = 0.0, 1
        for size in sizes:
            took_s, refusal = attempt(place, word, size)
            assert len(refusal) <= MAX_TEXT_CHARS // 8, f"{place} {word!r} {size}"
            allowed_s = MAX_GROWTH * max(MEASURABLE_S, before_s * size / before)
            for _ in range(3):  # what else the machine does makes one measurement long, not each
                if took_s < allowed_s:
                    break
                took_s = min(took_s, attempt(place, word, size)[0])
            assert took_s < allowed_s, (
                f"{place} {word!r} {size}: {took_s:.2f} s after {before_s:.2f} s"
            )
            before_s, before = took_s, size


REQUESTS: list[tuple[Message, str]] = [
    (
        api.ContainerStatusRequest(container_id="a" * 5000),
        f"container_id has 5000 characters; the limit is {MAX_CHARS}",
    ),
    (
        api.CreateContainerRequest(
            config=api.ContainerConfig(envs=[api.KeyValue(key="A", value=b"x" * 200_000)])
        ),
        "config.envs[0].value has 200000 bytes; the limit is 131071",
    ),
    (
        api.CreateContainerRequest(config=api.ContainerConfig(mounts=[api.Mount()] * 10_001)),
        f"config.mounts has 10001 entries; the limit is {MAX_ENTRIES}",
    ),
    (
        api.CreateContainerRequest(config=api.ContainerConfig(args=["x", "y" * 140_000])),
        "config.args[1] has 140000 characters; the limit is 131071",
    ),
    (
        api.RunPodSandboxRequest(config=api.PodSandboxConfig(annotations={"a": "x" * 524_288})),
        f"config.annotations has 524289 characters in all keys and values; the limit is {MAX_MAP_CHARS}",
    ),
    (
        api.ListContainersRequest(
            filter=api.ContainerFilter(label_selector={f"k{n}": "" for n in range(10_001)})
        ),
        f"filter.label_selector has 10001 entries; the limit is {MAX_ENTRIES}",
    ),
    (
        v1alpha2.RunPodSandboxRequest(config=v1alpha2.PodSandboxConfig(hostname="h" * 4097)),
        "config.hostname has 4097 characters; the limit is 4096",
    ),
]


@pytest.mark.parametrize(("request_", "refusal"), REQUESTS, ids=[text for _, text in REQUESTS])
def test_a_refusal_names_the_field_what_it_has_and_what_it_may_have(
    request_: Message, refusal: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_parts(request_, request_.ByteSize())
    assert str(caught.value) == refusal


def test_what_honest_clients_send_passes() -> None:
    envs = [api.KeyValue(key=f"SVC_{n}_PORT", value=b"tcp://10.0.0.1:80") for n in range(35_000)]
    config = api.ContainerConfig(envs=envs, args=["x" * 131_071], annotations={"a": "x" * 262_144})
    request_ = api.CreateContainerRequest(config=config)
    check_parts(request_, request_.ByteSize())
    assert cpu_s(lambda: check_parts(request_, request_.ByteSize())) < 0.1


def test_no_limit_is_below_the_size_that_needs_no_look() -> None:
    limits = (*request_limits.MAX_CHARS_OF.values(), MAX_MAP_CHARS, MAX_REQUEST_BYTES)
    entries = (*request_limits.MAX_ENTRIES_OF.values(), MAX_ENTRIES)
    assert min(limits) >= MAX_CHARS
    assert min(entries) >= MAX_CHARS


def test_nested_places_are_found_in_one_pass() -> None:
    places_ = ["/a", "/a/b", "/data", "/proc"]
    paths = ["/a", "/a/b", "/a/b/c", "/ab", "/data/x", "/data-1/x", "/proc/1", "/"]
    assert lying_below(paths, places_) == {"/a/b", "/a/b/c", "/data/x", "/proc/1"}
    many = [f"/m/{n}/{'x/' * (n % 50)}y" for n in range(10_000)]
    once = cpu_s(lambda: lying_below(many[:2500], many[:2500]))
    assert cpu_s(lambda: lying_below(many, many)) < 10 * max(once, 0.01)
