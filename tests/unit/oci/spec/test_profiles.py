import pytest

from cri_shim._pb.cri.v1.api_pb2 import SecurityProfile
from cri_shim.errors import InvalidArgumentError
from cri_shim.oci.spec.profiles import (
    Choice,
    ProfileReference,
    deprecated_reference,
    profile_reference,
)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("", ProfileReference(Choice.UNSET)),
        ("unconfined", ProfileReference(Choice.UNCONFINED)),
        ("runtime/default", ProfileReference(Choice.RUNTIME_DEFAULT)),
        ("docker/default", ProfileReference(Choice.RUNTIME_DEFAULT)),
        ("localhost/a/b", ProfileReference(Choice.LOCALHOST, "a/b")),
    ],
)
def test_deprecated_strings(text: str, reference: ProfileReference) -> None:
    assert deprecated_reference(text, "f") == reference


def test_anything_else_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="f: 'Unconfined'"):
        deprecated_reference("Unconfined", "f")


def test_a_name_may_come_with_the_deprecated_prefix() -> None:
    message = SecurityProfile(profile_type=SecurityProfile.Localhost, localhost_ref="localhost/x")
    assert profile_reference(message, "f") == ProfileReference(Choice.LOCALHOST, "x")


def test_a_name_for_another_type_is_refused() -> None:
    message = SecurityProfile(profile_type=SecurityProfile.Unconfined, localhost_ref="x")
    with pytest.raises(InvalidArgumentError, match=r"f.localhost_ref"):
        profile_reference(message, "f")
