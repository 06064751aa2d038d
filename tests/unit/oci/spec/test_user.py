import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim._pb.cri.v1 import api_pb2
from cri_shim._pb.cri.v1.api_pb2 import (
    Int64Value,
    LinuxContainerSecurityContext,
    LinuxSandboxSecurityContext,
)
from cri_shim.errors import InvalidArgumentError
from cri_shim.oci.spec.inputs import HandlerFacts, ResolvedUser
from cri_shim.oci.spec.user import (
    MAX_ID,
    GroupEntry,
    PasswdEntry,
    check_ids,
    parse_group,
    parse_id,
    parse_passwd,
    resolve_sandbox_user,
    resolve_user,
)

FILE_BYTES = 1 << 18
PASSWD = b"""root:x:0:0:root:/root:/bin/sh
app:x:1000:1001:An app:/home/app:/bin/false
4294967296:x:0:0:trap:/root:/bin/sh
65535000000:x:0:0:trap:/root:/bin/sh
-1:x:0:0:trap:/root:/bin/sh
"""
GROUP = b"""root:x:0:
app:x:1001:
audio:x:29:root,app
video:x:44:other,app
"""


def resolve(image_user: str = "", **fields: object) -> ResolvedUser:
    context = LinuxContainerSecurityContext(**fields)  # type: ignore[arg-type]
    return resolve_user(context, image_user=image_user, passwd=PASSWD, group=GROUP)


def number(value: int) -> Int64Value:
    return Int64Value(value=value)


@pytest.mark.parametrize(
    ("image_user", "expected"),
    [
        ("", ResolvedUser(0, 0, (0, 29), "root", "/root")),
        ("app", ResolvedUser(1000, 1001, (1001, 29, 44), "app", "/home/app")),
        ("1000", ResolvedUser(1000, 1001, (1001, 29, 44), "app", "/home/app")),
        ("1000:0", ResolvedUser(1000, 0, (0, 29, 44), "app", "/home/app")),
        ("app:video", ResolvedUser(1000, 44, (44, 29), "app", "/home/app")),
        ("7", ResolvedUser(7, 0, (0,), "", "/")),
        ("7:8", ResolvedUser(7, 8, (8,), "", "/")),
        (":44", ResolvedUser(0, 44, (44, 29), "root", "/root")),
        ("0007", ResolvedUser(7, 0, (0,), "", "/")),
        (str(MAX_ID), ResolvedUser(MAX_ID, 0, (0,), "", "/")),
    ],
)
def test_image_user_is_resolved_in_the_images_files(
    image_user: str, expected: ResolvedUser
) -> None:
    assert resolve(image_user) == expected


def test_request_comes_before_the_image() -> None:
    assert resolve("app", run_as_user=number(7)).uid == 7
    assert resolve("root", run_as_username="app").uid == 1000
    assert resolve("root", run_as_username="1000").username == "app"
    assert resolve("app:video", run_as_user=number(1000), run_as_group=number(5)).gid == 5
    assert resolve("app:video", run_as_user=number(1000)).gid == 1001


@pytest.mark.parametrize(
    "word", ["4294967296", "65535000000", "-1", "+1", "4294967295", "9" * 40, str(2**31) + "0"]
)
def test_cve_2026_46680_number_out_of_range_is_refused_and_never_looked_up_as_a_name(
    word: str,
) -> None:
    for fields, said_in in (
        ({"image_user": word}, "image USER: "),
        ({"run_as_username": word}, "run_as_username: "),
    ):
        with pytest.raises(InvalidArgumentError, match=said_in):
            resolve(**fields)
    with pytest.raises(InvalidArgumentError, match="the group of image USER: "):
        resolve(f"app:{word}")


@pytest.mark.parametrize("value", [-1, 2**32 - 1, 2**32, 2**63 - 1, -(2**63)])
def test_cve_2024_40635_requested_id_is_never_wrapped(value: int) -> None:
    with pytest.raises(InvalidArgumentError, match="run_as_user"):
        resolve(run_as_user=number(value))
    with pytest.raises(InvalidArgumentError, match="run_as_group"):
        resolve(run_as_user=number(0), run_as_group=number(value))
    with pytest.raises(InvalidArgumentError, match="supplemental_groups"):
        resolve(supplemental_groups=[value])


def test_ids_above_31_bits_are_ordinary() -> None:
    assert resolve(run_as_user=number(2**31 + 5)).uid == 2**31 + 5


def test_cve_2022_2995_primary_group_is_among_the_additional_ones() -> None:
    for policy in (api_pb2.Merge, api_pb2.Strict):
        user = resolve("app:video", supplemental_groups=[4000], supplemental_groups_policy=policy)
        assert user.gid in user.additional_gids


def test_strict_policy_leaves_the_images_groups_out() -> None:
    strict = resolve("app", supplemental_groups=[9, 9], supplemental_groups_policy=api_pb2.Strict)
    assert strict.additional_gids == (1001, 9)
    merged = resolve("app", supplemental_groups=[9])
    assert merged.additional_gids == (1001, 9, 29, 44)


def test_unknown_policy_is_refused() -> None:
    context = LinuxContainerSecurityContext.FromString(bytes.fromhex("880107"))
    with pytest.raises(InvalidArgumentError, match="supplemental_groups_policy"):
        resolve_user(context, image_user="", passwd=b"", group=b"")


def test_unknown_names_say_which_file_lacks_them() -> None:
    with pytest.raises(InvalidArgumentError, match=r"'nobody': there is no such user in .*passwd"):
        resolve("nobody")
    with pytest.raises(InvalidArgumentError, match=r"'staff': there is no such group in .*group"):
        resolve("app:staff")


def test_group_without_a_user_is_refused_even_if_the_image_names_one() -> None:
    with pytest.raises(InvalidArgumentError, match="run_as_group"):
        resolve("app", run_as_group=number(5))


def test_uid_and_username_together_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="only one"):
        resolve(run_as_user=number(0), run_as_username="app")


def test_more_groups_than_the_kernel_takes_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="65536"):
        resolve(supplemental_groups=range(1, 65538))


def test_malformed_lines_are_skipped() -> None:
    passwd = b"\n#x:x:1:1\n:x:1:1\nshort:x:1\nbig:x:4294967295:1\nneg:x:-1:1\nu:x:1:x\nok:x:5:6\n"
    assert list(parse_passwd(passwd)) == [PasswdEntry(b"ok", 5, 6, b"")]
    group = b"\n#g:x:1:\n:x:1:\ng:x\ng:x:4294967296:\nmin:x:7\nok:x:5: a,,b \r\n"
    assert list(parse_group(group)) == [
        GroupEntry(b"min", 7, b""),
        GroupEntry(b"ok", 5, b"a,,b"),
    ]


def test_first_of_two_entries_counts_as_in_libc() -> None:
    passwd = b"a:x:5:50::/one:\na:x:6:60::/two:\nb:x:5:70::/three:\n"
    context = LinuxContainerSecurityContext(run_as_username="a")
    assert resolve_user(context, image_user="", passwd=passwd, group=b"").home == "/one"
    context = LinuxContainerSecurityContext(run_as_user=number(5))
    assert resolve_user(context, image_user="", passwd=passwd, group=b"").username == "a"


@pytest.mark.parametrize(
    ("name", "is_member"),
    [(b"a", True), (b"b", True), (b"c,d", False), (b"d", True), (b"ab", False)],
)
def test_members_stand_between_commas(name: bytes, *, is_member: bool) -> None:
    assert GroupEntry(b"g", 1, b"a,,b,c,d").has(name) == is_member


@pytest.mark.parametrize(
    "line", [b"\n", b"ab\n", b":", b"ab,", b"g:x:5:ab,", b"a:x:1:1:::\n"], ids=repr
)
def test_files_of_the_most_pieces_take_no_memory_but_their_own(line: bytes) -> None:
    data = line * (FILE_BYTES // len(line))
    context = LinuxContainerSecurityContext(run_as_user=number(7))
    tracemalloc.start()
    try:
        resolve_user(context, image_user="", passwd=data, group=data)
        for _ in parse_group(data):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * FILE_BYTES


def test_name_that_only_resembles_a_member_is_none() -> None:
    group = b"wheel:x:10:apple\n"
    context = LinuxContainerSecurityContext(run_as_username="app")
    user = resolve_user(context, image_user="", passwd=PASSWD, group=group)
    assert user.additional_gids == (1001,)


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("10", 10), ("a1", None), ("", None)])
def test_word_is_a_number_or_a_name_but_never_both(text: str, value: int | None) -> None:
    assert parse_id(text, "user") == value


@given(data=st.binary(max_size=400), word=st.text(max_size=12))
def test_any_bytes_give_a_user_or_a_refusal(data: bytes, word: str) -> None:
    context = LinuxContainerSecurityContext()
    try:
        user = resolve_user(context, image_user=word, passwd=PASSWD + data, group=GROUP + data)
    except InvalidArgumentError:
        return
    assert 0 <= user.uid <= MAX_ID
    assert user.additional_gids[0] == user.gid


def test_sandbox_user_is_numbers_only_and_may_be_a_group_alone() -> None:
    assert resolve_sandbox_user(LinuxSandboxSecurityContext()) == ResolvedUser()
    context = LinuxSandboxSecurityContext(run_as_group=number(5), supplemental_groups=[6])
    assert resolve_sandbox_user(context) == ResolvedUser(0, 5, (5, 6))
    context = LinuxSandboxSecurityContext(run_as_user=number(7))
    assert resolve_sandbox_user(context) == ResolvedUser(7, 0, (0,))


@pytest.mark.parametrize(
    "context",
    [
        LinuxSandboxSecurityContext(run_as_user=Int64Value(value=-1)),
        LinuxSandboxSecurityContext(run_as_group=Int64Value(value=2**32)),
        LinuxSandboxSecurityContext(supplemental_groups=[2**32]),
    ],
)
def test_sandbox_ids_are_bounded_as_well(context: LinuxSandboxSecurityContext) -> None:
    with pytest.raises(InvalidArgumentError):
        resolve_sandbox_user(context)


def test_runtime_with_a_lower_bound_than_the_kernels_is_told_no_higher_id() -> None:
    runc = HandlerFacts("runc", max_user_id=2**31 - 1)
    for user, field in (
        (ResolvedUser(uid=2**31), "run_as_user"),
        (ResolvedUser(gid=2**31), "run_as_group"),
        (ResolvedUser(additional_gids=(0, 2**31)), "supplemental_groups"),
    ):
        with pytest.raises(InvalidArgumentError, match=f"^{field}: 2147483648: .*'runc'"):
            check_ids(user, runc)
        check_ids(user, HandlerFacts("crun"))
    check_ids(ResolvedUser(uid=2**31 - 1), runc)
