"""Nothing secret and nothing long gets into a log line."""

from __future__ import annotations

from timeit import repeat
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cri_shim._pb.admin.v1 import admin_pb2
from cri_shim._pb.cri.v1 import api_pb2 as v1
from cri_shim._pb.cri.v1alpha2 import api_pb2 as v1alpha2
from cri_shim.rpc.redaction import _UNMARKED, HIDDEN, MAX_VALUE_CHARS, redacted

if TYPE_CHECKING:
    from google.protobuf.message import Message

CREDENTIALS = {
    "username": "joe",
    "password": "secret-1",
    "auth": "secret-2",
    "server_address": "registry.example",
    "identity_token": "secret-3",
    "registry_token": "secret-4",
}


def test_marked_fields_are_hidden_and_the_others_shown() -> None:
    assert redacted(v1.AuthConfig(**CREDENTIALS)) == (
        'AuthConfig{username: "joe", password: [redacted], auth: [redacted], '
        'server_address: "registry.example", identity_token: [redacted], registry_token: [redacted]}'
    )


def test_the_pull_of_the_command_line_shows_no_credential_either() -> None:
    request = admin_pb2.PullImageRequest(
        image=v1.ImageSpec(image="app:1"), auth=v1.AuthConfig(**CREDENTIALS)
    )
    assert "app:1" in redacted(request)
    assert "secret" not in redacted(request)


def test_a_secret_that_was_not_given_is_not_shown_as_given() -> None:
    assert redacted(v1.AuthConfig(username="joe")) == 'AuthConfig{username: "joe"}'


@pytest.mark.parametrize("api", [v1, v1alpha2], ids=["v1", "v1alpha2"])
def test_a_pull_shows_its_image_but_no_credential_in_either_version(api: object) -> None:
    request = api.PullImageRequest(  # type: ignore[attr-defined]
        image={"image": "registry.example/app:1"}, auth=CREDENTIALS
    )
    text = redacted(request)
    assert "registry.example/app:1" in text
    assert "secret" not in text


@pytest.mark.parametrize(
    "message",
    [
        v1.CreateContainerRequest(
            config=v1.ContainerConfig(envs=[v1.KeyValue(key="TOKEN", value=b"secret")])
        ),
        v1alpha2.CreateContainerRequest(
            config=v1alpha2.ContainerConfig(envs=[v1alpha2.KeyValue(key="TOKEN", value="secret")])
        ),
        v1.ExecResponse(url="http://127.0.0.1:10350/exec/secret"),
        v1.AttachResponse(url="http://127.0.0.1:10350/attach/secret"),
        v1.PortForwardResponse(url="http://127.0.0.1:10350/portforward/secret"),
        v1.ContainerStatusResponse(info={"info": '{"env": ["A=secret"]}'}),
        v1.ExecSyncResponse(stdout=b"secret", stderr=b"secret"),
    ],
    ids=lambda message: message.DESCRIPTOR.full_name,
)
def test_what_is_secret_without_a_mark_is_hidden_too(message: Message) -> None:
    assert "secret" in str(message)
    assert "secret" not in redacted(message)


def test_the_unmarked_secrets_are_fields_that_exist() -> None:
    for type_name, fields in _UNMARKED.items():
        descriptor = v1.DESCRIPTOR.message_types_by_name[type_name.removeprefix("runtime.v1.")]
        assert fields <= set(descriptor.fields_by_name)


def test_fields_of_a_newer_client_are_left_out() -> None:
    newer = v1.AuthConfig(username="joe").SerializeToString() + b"\x7a\x06secret"  # field 15
    assert redacted(v1.AuthConfig.FromString(newer)) == 'AuthConfig{username: "joe"}'


def test_every_kind_of_field_is_readable() -> None:
    message = v1.ContainerConfig(
        metadata=v1.ContainerMetadata(name="web", attempt=2),
        args=["-v", 'say "hi"'],
        mounts=[v1.Mount(readonly=True, propagation=v1.PROPAGATION_HOST_TO_CONTAINER)],
        labels={"b": "2", "a": "1"},
        linux=v1.LinuxContainerConfig(resources=v1.LinuxContainerResources(cpu_quota=-1)),
    )
    assert redacted(message) == (
        'ContainerConfig{metadata: {name: "web", attempt: 2}, args: ["-v", "say \\"hi\\""], '
        "mounts: [{readonly: true, propagation: PROPAGATION_HOST_TO_CONTAINER}], "
        'labels: {"a": "1", "b": "2"}, linux: {resources: {cpu_quota: -1}}}'
    )


def test_an_enum_value_of_a_newer_client_is_shown_as_its_number() -> None:
    unknown = v1.PortMapping.FromString(b"\x08\x63")
    assert redacted(unknown) == "PortMapping{protocol: 99}"


def test_an_empty_message_is_its_name() -> None:
    assert redacted(v1.ImageFsInfoRequest()) == "ImageFsInfoRequest{}"


def test_no_request_can_forge_a_line() -> None:
    text = redacted(v1.StopContainerRequest(container_id="a\nlevel=error \x1b[31m\u2028\u202e"))
    assert text.isascii()
    assert text.isprintable()


def test_a_long_value_shows_its_beginning_and_how_much_is_missing() -> None:
    text = redacted(v1.ImageSpec(image="x" * (MAX_VALUE_CHARS + 7)))
    assert text == 'ImageSpec{image: "' + "x" * MAX_VALUE_CHARS + '"(+7)}'


def test_a_large_message_costs_no_more_than_its_text() -> None:
    containers = [v1.Container(id="c" * 64, labels={"app": "web"})] * 20_000
    message = v1.ListContainersResponse(containers=containers)
    text = redacted(message)
    assert len(text) == 1024
    assert text.endswith("…")

    whole_s = min(repeat(lambda: redacted(message, max_chars=10**9), number=1, repeat=3))
    cut_s = min(repeat(lambda: redacted(message), number=1, repeat=3))
    assert cut_s < whole_s / 20  # about a thousandth


def test_a_chunk_of_an_image_is_shown_by_its_size() -> None:
    chunk = admin_pb2.ImportImageRequest(chunk=b"\0" * 1_000_000)
    assert redacted(chunk) == "ImportImageRequest{chunk: <1000000 bytes>}"


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8")), st.integers(min_value=1, max_value=120))
def test_any_text_stays_within_its_bound_and_hides_its_secret(name: str, max_chars: int) -> None:
    request = v1.PullImageRequest(
        image=v1.ImageSpec(image=name), auth=v1.AuthConfig(password="~secret~")
    )
    text = redacted(request, max_chars=max_chars)
    assert len(text) <= max_chars
    assert "~secret~" not in text
    assert text.endswith("…") or HIDDEN in text


def test_the_message_itself_keeps_its_secrets() -> None:
    message = v1.AuthConfig(**CREDENTIALS)
    redacted(message)
    assert message.password == "secret-1"
