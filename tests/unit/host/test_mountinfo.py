from __future__ import annotations

from pathlib import Path

import pytest

from cri_shim.host.mountinfo import mount_of, parse_mountinfo, read_mounts

TEXT = rb"""21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
22 21 0:21 / /proc rw,nosuid - proc proc rw
35 21 0:30 /sub /mnt/with\040space\011tab\134slash rw shared:5 master:2 propagate_from:1 - tmpfs none rw,size=4k
36 21 0:31 / /mnt/caf\303\251 ro - overlay overlay ro,lowerdir=a:b
37 21 0:31 / /mnt/gone//deleted ro - tmpfs tmpfs ro
38 21 0:32 / /mnt/empty rw - tmpfs  rw
"""


def test_every_field_is_read() -> None:
    root, proc, odd, accent, empty = parse_mountinfo(TEXT)
    assert (root.mount_id, root.parent_id, root.device) == (21, 1, "254:0")
    assert (root.fs_type, root.source, root.super_options) == ("ext4", "/dev/vda", "rw,discard")
    assert root.is_shared
    assert proc.propagation == ()
    assert not proc.is_shared
    assert odd.target == Path("/mnt/with space\ttab\\slash")
    assert odd.root == "/sub"
    assert odd.propagation == ("shared:5", "master:2", "propagate_from:1")
    assert accent.target == Path("/mnt/café")
    assert accent.options == "ro"
    assert empty.source == ""


@pytest.mark.parametrize("line", [b"nonsense", b"1 2 3 4 5 6 7 8", b"a 1 0:1 / / rw - x y z"])
def test_what_is_no_mountinfo_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="malformed line of mountinfo"):
        parse_mountinfo(line)


def test_bytes_that_are_no_text_survive() -> None:
    (mount,) = parse_mountinfo(b"1 0 0:1 / /mnt/\\377x rw - tmpfs t rw\n")
    assert bytes(mount.target) == b"/mnt/\xffx"


def test_path_lies_on_the_deepest_and_topmost_mount() -> None:
    mounts = parse_mountinfo(
        b"1 0 0:1 / / rw - ext4 a rw\n"
        b"2 1 0:2 / /run rw - tmpfs b rw\n"
        b"3 2 0:3 / /run rw shared:1 - tmpfs c rw\n"
        b"4 1 0:4 / /runner rw - tmpfs d rw\n"
    )
    found = mount_of(Path("/run/netns"), mounts)
    assert found is not None
    assert found.mount_id == 3
    assert mount_of(Path("/x"), mounts) == mounts[0]
    assert mount_of(Path("/x"), []) is None


def test_this_machines_own_mounts_can_be_read() -> None:
    assert any(mount.target == Path("/proc") for mount in read_mounts())
