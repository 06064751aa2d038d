"""The user of a container: from the request or the image's USER, looked up in the image's passwd and group files.

Rules:
- A word of digits, signed or not, is always a number and never looked up as a name (CVE-2026-46680). A number outside
  0..2^32-2 is refused, never wrapped (CVE-2024-40635); to the kernel, 2^32-1 means "unchanged".
- The primary GID is among the additional ones (CVE-2022-2995).
- The files come from the image. Malformed lines are skipped, and the reader has bounded their size. Lines are compared
  as bytes. Megabytes take a while, so callers parse in a thread. Lines are read one by one and split into a bounded
  number of fields, so memory stays at the file's size and other threads run in between.
- RunAsGroup without a user is an error, as CRI documents.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from cri_shim._pb.cri.v1 import api_pb2
from cri_shim.errors import InvalidArgumentError
from cri_shim.oci.spec.checks import in_range, refuse
from cri_shim.oci.spec.inputs import ResolvedUser
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from cri_shim._pb.cri.v1.api_pb2 import (
        LinuxContainerSecurityContext,
        LinuxSandboxSecurityContext,
    )
    from cri_shim.oci.spec.inputs import HandlerFacts

MAX_ID = 2**32 - 2
MAX_GROUPS = 65536
"""NGROUPS_MAX, the limit of setgroups(2)."""
_NUMERIC = re.compile(r"[+-]?[0-9]+")
_ID = re.compile(rb"[0-9]{1,10}")


@dataclass(frozen=True, slots=True)
class PasswdEntry:
    """A well-formed line of a passwd file."""

    name: bytes
    uid: int
    gid: int
    home: bytes


@dataclass(frozen=True, slots=True)
class GroupEntry:
    """A well-formed line of a group file."""

    name: bytes
    gid: int
    members: bytes
    """Separated by commas."""

    def has(self, name: bytes) -> bool:
        """Whether the user is among the members."""
        return b"," not in name and b",%b," % name in b",%b," % self.members


def parse_passwd(data: bytes) -> Iterator[PasswdEntry]:
    """Parse the well-formed lines; others are skipped, as by every libc."""
    for line in BytesIO(data):
        fields = line.rstrip(b"\n").split(b":", 6)
        if len(fields) < 4 or not fields[0] or fields[0].startswith(b"#"):
            continue
        uid, gid = _file_id(fields[2]), _file_id(fields[3])
        if uid is not None and gid is not None:
            yield PasswdEntry(fields[0], uid, gid, fields[5] if len(fields) > 5 else b"")


def parse_group(data: bytes) -> Iterator[GroupEntry]:
    """Parse the well-formed lines; others are skipped."""
    for line in BytesIO(data):
        fields = line.rstrip(b"\n").split(b":", 4)
        if len(fields) < 3 or not fields[0] or fields[0].startswith(b"#"):
            continue
        gid = _file_id(fields[2])
        if gid is not None:
            yield GroupEntry(fields[0], gid, fields[3].strip() if len(fields) > 3 else b"")


def _file_id(text: bytes) -> int | None:
    """Parse a UID or GID of such a file; None if the kernel has no such ID."""
    if _ID.fullmatch(text) is None:
        return None
    number = int(text)
    return number if number <= MAX_ID else None


def parse_id(text: str, field: str) -> int | None:
    """The number in `text`, or None if it is a name.

    Raises InvalidArgumentError for a number out of range.
    """
    if _NUMERIC.fullmatch(text) is None:
        return None
    if len(text) > 20 or not text.isdigit():
        refuse(field, text, f"must be a number between 0 and {MAX_ID}, or a name")
    return in_range(int(text), field, low=0, high=MAX_ID)


def resolve_user(
    context: LinuxContainerSecurityContext, *, image_user: str, passwd: bytes, group: bytes
) -> ResolvedUser:
    """Resolve the user of a container.

    `passwd` and `group` are those files of its root file system; empty if missing or no regular files.

    Raises InvalidArgumentError for a number out of range, an unknown name, or a group without a user.
    """
    wanted = _requested(context, image_user)
    entry = _find_user(wanted, passwd)
    gid = entry.gid
    if wanted.group:
        gid = _find_group(wanted, group)
    extra = [
        in_range(g, "supplemental_groups", low=0, high=MAX_ID) for g in context.supplemental_groups
    ]
    if context.supplemental_groups_policy == api_pb2.Merge:
        extra += _groups_of(entry.name, group)
    elif context.supplemental_groups_policy != api_pb2.Strict:
        refuse(
            "supplemental_groups_policy",
            context.supplemental_groups_policy,
            "is not a policy of CRI",
        )
    return ResolvedUser(
        uid=entry.uid,
        gid=gid,
        additional_gids=_with_primary(gid, extra),
        username=entry.name.decode("utf-8", "backslashreplace"),
        home=entry.home.decode("utf-8", "backslashreplace") or "/",
        user_field=wanted.user_field,
        group_field=wanted.group_field,
    )


def check_ids(user: ResolvedUser, handler: HandlerFacts) -> None:
    """Raises InvalidArgumentError for an ID that the kernel accepts but the handler's runtime does not."""
    for field, ids in (
        (user.user_field, (user.uid,)),
        (user.group_field, (user.gid,)),
        ("supplemental_groups", user.additional_gids),
    ):
        if (highest := max(ids, default=0)) > handler.max_user_id:
            refuse(
                field,
                highest,
                f"the runtime handler {quoted(handler.name)} accepts no ID above {handler.max_user_id}",
            )


def resolve_sandbox_user(context: LinuxSandboxSecurityContext) -> ResolvedUser:
    """Resolve the user of a pause container: numbers only, since its image has no passwd file.

    Unlike for a container, a group without a user is accepted: the kubelet sends a pod's `runAsGroup` alone.
    """
    uid = gid = 0
    if context.HasField("run_as_user"):
        uid = in_range(context.run_as_user.value, "run_as_user", low=0, high=MAX_ID)
    if context.HasField("run_as_group"):
        gid = in_range(context.run_as_group.value, "run_as_group", low=0, high=MAX_ID)
    extra = [
        in_range(g, "supplemental_groups", low=0, high=MAX_ID) for g in context.supplemental_groups
    ]
    return ResolvedUser(uid=uid, gid=gid, additional_gids=_with_primary(gid, extra))


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A user and a group to resolve, with the fields they come from. An empty group means the user's own."""

    user: str
    user_field: str
    group: str
    group_field: str


def _requested(context: LinuxContainerSecurityContext, image_user: str) -> _Wanted:
    has_uid = context.HasField("run_as_user")
    if has_uid and context.run_as_username:
        raise InvalidArgumentError("run_as_user and run_as_username: only one of them may be set")
    group_word = ""
    if context.HasField("run_as_group"):
        group_word = str(in_range(context.run_as_group.value, "run_as_group", low=0, high=MAX_ID))
    if has_uid:
        uid = in_range(context.run_as_user.value, "run_as_user", low=0, high=MAX_ID)
        return _Wanted(
            str(uid), "run_as_user", group_word, "run_as_group" if group_word else "run_as_user"
        )
    if context.run_as_username:
        field = "run_as_username"
        return _Wanted(
            context.run_as_username, field, group_word, "run_as_group" if group_word else field
        )
    if group_word:
        raise InvalidArgumentError(
            f"run_as_group: {group_word} is set without run_as_user or run_as_username"
        )
    user_word, _, group_word = image_user.partition(":")
    return _Wanted(user_word or "0", "image USER", group_word, "the group of image USER")


def _find_user(wanted: _Wanted, passwd: bytes) -> PasswdEntry:
    """The user's passwd entry. For a UID without one: that UID, group 0 and no name."""
    word = wanted.user
    uid = parse_id(word, wanted.user_field)
    name = word.encode("utf-8", "surrogateescape")
    for entry in parse_passwd(passwd):
        if entry.uid == uid if uid is not None else entry.name == name:
            return entry
    if uid is None:
        refuse(wanted.user_field, word, "there is no such user in the container's /etc/passwd")
    return PasswdEntry(b"", uid, 0, b"")


def _find_group(wanted: _Wanted, group: bytes) -> int:
    word = wanted.group
    gid = parse_id(word, wanted.group_field)
    if gid is not None:
        return gid
    name = word.encode("utf-8", "surrogateescape")
    for entry in parse_group(group):
        if entry.name == name:
            return entry.gid
    refuse(wanted.group_field, word, "there is no such group in the container's /etc/group")


def _groups_of(username: bytes, group: bytes) -> Iterable[int]:
    # One search over the whole file: most images list the user in no group.
    if not username or username not in group:
        return ()
    return (entry.gid for entry in parse_group(group) if entry.has(username))


def _with_primary(gid: int, others: Sequence[int]) -> tuple[int, ...]:
    gids = tuple(dict.fromkeys((gid, *others)))
    if len(gids) > MAX_GROUPS:
        raise InvalidArgumentError(
            f"supplemental_groups: {len(gids)} groups; the kernel's limit is {MAX_GROUPS}"
        )
    return gids
