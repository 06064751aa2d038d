"""Which profile a request means: the fields of seccomp and AppArmor, in both of CRI's generations.

Rules of the file: the SecurityProfile message counts if it is there, else the deprecated string. Nothing here knows
what a profile is.
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
    """Which profile a request means."""

    UNSET = auto()
    RUNTIME_DEFAULT = auto()
    UNCONFINED = auto()
    LOCALHOST = auto()


@dataclass(frozen=True, slots=True)
class ProfileReference:
    """A profile as requested; `name` is a file (seccomp) or a loaded profile (AppArmor) for LOCALHOST."""

    choice: Choice
    name: str = ""
    said_in: str = field(default="", compare=False)
    """The field of the request that names it, for refusals."""


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
    """What a SecurityProfile means; the name may come with the prefix of the deprecated form.

    Raises InvalidArgumentError for a type that CRI does not define, and for a name that goes with another type.
    """
    choice = _CHOICES.get(profile.profile_type)
    if choice is None:
        refuse(f"{name}.profile_type", profile.profile_type, "is not a profile type of CRI")
    if choice is not Choice.LOCALHOST and profile.localhost_ref:
        refuse(
            f"{name}.localhost_ref",
            profile.localhost_ref,
            "is for the profile type Localhost only",
        )
    return ProfileReference(
        choice,
        profile.localhost_ref.removeprefix(LOCALHOST_PREFIX),
        said_in=f"{name}.localhost_ref" if choice is Choice.LOCALHOST else f"{name}.profile_type",
    )


def deprecated_reference(text: str, name: str) -> ProfileReference:
    """What one of the deprecated strings means. Raises InvalidArgumentError for one that means nothing."""
    if text.startswith(LOCALHOST_PREFIX):
        return ProfileReference(Choice.LOCALHOST, text.removeprefix(LOCALHOST_PREFIX), said_in=name)
    if text not in _DEPRECATED_CHOICES:
        raise InvalidArgumentError(
            f"{name}: {quoted(text)}: must be runtime/default, unconfined or localhost/NAME"
        )
    return ProfileReference(_DEPRECATED_CHOICES[text], said_in=name)
