"""Whatever a client sends, the builders answer with a spec or one of the documented refusals."""

import re
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cri_shim._pb.cri.v1.api_pb2 import ContainerConfig, PodSandboxConfig
from cri_shim.errors import InvalidArgumentError, PermissionRefusedError, UnsupportedError
from cri_shim.oci.spec.container import encode_spec
from cri_shim.oci.spec.process import undecodable_env
from cri_shim.oci.spec.stop_signal import stop_signal
from cri_shim.oci.spec.user import resolve_user
from tests.unit.oci.spec.cases import IMAGE, container_spec, sandbox_spec

REFUSALS = (InvalidArgumentError, UnsupportedError, PermissionRefusedError)
TEXTS = st.one_of(
    st.sampled_from(
        [
            *("", "/", "/data", "ALL", "NET_ADMIN", "2MB", "0-3", "1", "-1", "net.ipv4.ip_forward"),
            *("rwm", "noexec", "localhost/x", "runtime/default", "cgroup.pids.max", "memory.high"),
        ]
    ),
    st.text(max_size=8),
)
NUMBERS = st.one_of(st.sampled_from([0, 1, -1, 1000, 2**31, 2**32]), st.integers(-(2**31), 2**31))


def scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.type == field.TYPE_STRING:
        return TEXTS
    if field.type == field.TYPE_BYTES:
        return st.binary(max_size=8)
    if field.type == field.TYPE_BOOL:
        return st.booleans()
    if field.type == field.TYPE_ENUM:
        return st.integers(0, 70)
    if field.type == field.TYPE_INT32:
        return st.integers(-(2**31), 2**31 - 1)
    if field.type in (field.TYPE_UINT32, field.TYPE_UINT64):
        return st.integers(0, 2**32 - 1)
    return NUMBERS


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor, depth: int = 0) -> dict[str, Any]:
    """Field values for a message; deeper ones are sparser."""
    values: dict[str, Any] = {}
    for field in descriptor.fields:
        if field.name == "windows" or draw(st.integers(0, 2 + depth)) != 0:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            values[field.name] = draw(st.dictionaries(TEXTS, TEXTS, max_size=2))
            continue
        if field.message_type is not None:
            strategy: st.SearchStrategy[Any] = messages(field.message_type, depth + 1)
        else:
            strategy = scalar(field)
        values[field.name] = draw(st.lists(strategy, max_size=3) if field.is_repeated else strategy)
    return values


@st.composite
def few(draw: st.DrawFn, descriptor: Descriptor) -> dict[str, Any]:
    """As `messages`, with a few fields only, so that what is behind the first refusal is reached as well."""
    values: dict[str, Any] = {}
    for _ in range(draw(st.integers(1, 4))):
        draw_leaf(draw, descriptor, values)
    return values


def draw_leaf(draw: st.DrawFn, descriptor: Descriptor, values: dict[str, Any]) -> None:
    """Give one field, somewhere below, a value."""
    field = draw(st.sampled_from([f for f in descriptor.fields if f.name != "windows"]))
    message = field.message_type
    if message is None:
        strategy = scalar(field)
        values[field.name] = draw(st.lists(strategy, max_size=3) if field.is_repeated else strategy)
    elif message.GetOptions().map_entry:
        values[field.name] = draw(st.dictionaries(TEXTS, TEXTS, max_size=2))
    elif field.is_repeated:
        values.setdefault(field.name, []).append({})
        for _ in range(draw(st.integers(1, len(message.fields)))):
            draw_leaf(draw, message, values[field.name][-1])
    else:
        draw_leaf(draw, message, values.setdefault(field.name, {}))


def names_a_field_of(config: Message, text: str) -> bool:
    """Whether a refusal says, by its name in CRI, a field that this request sets."""
    return not names_of(config).isdisjoint(re.findall(r"\w+", text))


def names_of(message: Message) -> set[str]:
    """The fields that are set in a message and those within it."""
    found = set()
    for field, value in message.ListFields():
        found.add(field.name)
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for each in value if field.is_repeated else (value,):
            found |= names_of(each)
    return found


def check_refusal(config: Message, refusal: Exception) -> None:
    assert names_a_field_of(config, str(refusal)), refusal


def make(kind: type[Message], values: dict[str, Any]) -> Any:
    return kind(**values)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values=st.one_of(messages(ContainerConfig.DESCRIPTOR), few(ContainerConfig.DESCRIPTOR)))
def test_any_container_config_gives_a_spec_or_a_refusal(values: dict[str, Any]) -> None:
    config = make(ContainerConfig, values)
    try:
        user = resolve_user(config.linux.security_context, image_user="", passwd=b"", group=b"")
        encode_spec(container_spec(config, user=user))
        stop_signal(config, IMAGE)
    except REFUSALS as refusal:
        check_refusal(config, refusal)
    undecodable_env(config)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values=st.one_of(messages(PodSandboxConfig.DESCRIPTOR), few(PodSandboxConfig.DESCRIPTOR)))
def test_any_sandbox_config_gives_a_spec_or_a_refusal(values: dict[str, Any]) -> None:
    config = make(PodSandboxConfig, values)
    try:
        encode_spec(sandbox_spec(config))
    except REFUSALS as refusal:
        check_refusal(config, refusal)
