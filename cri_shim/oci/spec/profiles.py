"""The profile references of a request: the fields for seccomp and AppArmor, in both of CRI's generations.

Rules: a SecurityProfile message takes precedence over the deprecated string. This module does not know what a profile
is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from cri_shim._pb.cri.v1 import api_pb2
from cri_shim.errors import InvalidArgumentError
from cri_shim.oci.spec.checks import refuse
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from cri_shim._pb.cri.v1.api_pb2 import SecurityProfile


class Choice(Enum):
    """The kind of profile that a request refers to."""

    UNSET = auto()
    RUNTIME_DEFAULT = auto()
    UNCONFINED = auto()
    LOCALHOST = auto()


@dataclass(frozen=True, slots=True)
class ProfileReference:
    """A requested profile. For LOCALHOST, `name` is a file (seccomp) or a loaded profile (AppArmor)."""

    choice: Choice
    name: str = ""
    said_in: str = field(default="", compare=False)
    """The request's field, for errors."""


LOCALHOST_PREFIX = "localhost/"
_CHOICES = {
    api_pb2.SecurityProfile.RuntimeDefault: Choice.RUNTIME_DEFAULT,
    api_pb2.SecurityProfile.Unconfined: Choice.UNCONFINED,
    api_pb2.SecurityProfile.Localhost: Choice.LOCALHOST,
}
_DEPRECATED_CHOICES = {
    "": Choice.UNSET,
    "unconfined": Choice.UNCONFINED,
    "runtime/default": Choice.RUNTIME_DEFAULT,
    "docker/default": Choice.RUNTIME_DEFAULT,
}


def profile_reference(profile: SecurityProfile, name: str) -> ProfileReference:
    """Parse a SecurityProfile. Its name may have the prefix of the deprecated form.

    Raises InvalidArgumentError for a type that CRI does not define, and for a name with another type than Localhost.
    """
    choice = _CHOICES.get(profile.profile_type)
    if choice is None:
        refuse(f"{name}.profile_type", profile.profile_type, "is not a profile type of CRI")
    if choice is not Choice.LOCALHOST and profile.localhost_ref:
        refuse(
            f"{name}.localhost_ref",
            profile.localhost_ref,
            "is allowed for the profile type Localhost only",
        )
    return ProfileReference(
        choice,
        profile.localhost_ref.removeprefix(LOCALHOST_PREFIX),
        said_in=f"{name}.localhost_ref" if choice is Choice.LOCALHOST else f"{name}.profile_type",
    )


def deprecated_reference(text: str, name: str) -> ProfileReference:
    """Parse one of the deprecated strings. Raises InvalidArgumentError for an unknown one."""
    if text.startswith(LOCALHOST_PREFIX):
        return ProfileReference(Choice.LOCALHOST, text.removeprefix(LOCALHOST_PREFIX), said_in=name)
    if text not in _DEPRECATED_CHOICES:
        raise InvalidArgumentError(
            f"{name}: {quoted(text)}: must be runtime/default, unconfined or localhost/NAME"
        )
    return ProfileReference(_DEPRECATED_CHOICES[text], said_in=name)
