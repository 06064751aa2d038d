import pytest

from cri_shim.errors import InvalidArgumentError
from cri_shim.oci.spec.checks import (
    absolute_path,
    clean_container_path,
    has_control_characters,
    in_range,
    no_nul,
)


@pytest.mark.parametrize(
    ("given", "clean"),
    [
        ("/", "/"),
        ("//", "/"),
        ("/a/", "/a"),
        ("//a//b/./c", "/a/b/c"),
        ("/a/../b", "/b"),
        ("/../../b", "/b"),
        ("/a/..", "/"),
        ("/a/.", "/a"),
        ("/.a/..b/...", "/.a/..b/..."),
        ("/a/b/c", "/a/b/c"),
        ("/ä/b", "/ä/b"),
    ],
)
def test_container_path_has_one_spelling(given: str, clean: str) -> None:
    assert clean_container_path(given, "path") == clean


@pytest.mark.parametrize("name", ["x" * 256, "ä" * 128])
def test_container_path_with_a_name_that_no_file_system_takes_is_refused(name: str) -> None:
    assert clean_container_path(f"/a/{name[:-1]}/b", "path") == f"/a/{name[:-1]}/b"
    with pytest.raises(InvalidArgumentError, match="exceeds 255 bytes"):
        clean_container_path(f"/a/{name}/b", "path")


@pytest.mark.parametrize("path", ["", "a", "./a", "/a\0b", "/" + "x" * 4096, "/" + "ä" * 2048])
def test_path_the_kernel_would_not_take_is_refused_with_its_field(path: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"mounts\[3\]"):
        absolute_path(path, "mounts[3]")


def test_path_of_exactly_path_max_is_taken() -> None:
    assert absolute_path("/" + "x" * 4095, "path")


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "\x00", "\x1b[0m", "\x7f"])
def test_control_characters_are_found_as_bytes(text: str) -> None:
    assert has_control_characters(text)


@pytest.mark.parametrize("text", ["", r"a\nb", "ä ~", "/home/app"])
def test_other_characters_are_no_control_characters(text: str) -> None:
    assert not has_control_characters(text)


def test_bounds_are_inclusive_and_named() -> None:
    assert in_range(1, "n", low=1, high=2) == 1
    assert in_range(2, "n", low=1, high=2) == 2
    with pytest.raises(InvalidArgumentError, match="n: 3: must be between 1 and 2"):
        in_range(3, "n", low=1, high=2)


def test_nul_is_refused() -> None:
    assert no_nul("ab", "cmd") == "ab"
    with pytest.raises(InvalidArgumentError, match="cmd"):
        no_nul("a\0b", "cmd")
