from __future__ import annotations

import threading

import pytest

from cri_shim.host.throwaway import in_throwaway_thread


def test_result_comes_back_and_the_thread_is_gone() -> None:
    threads = threading.active_count()
    name = in_throwaway_thread(lambda: threading.current_thread().name, name="once")
    assert name == "once"
    assert threading.active_count() == threads


def test_what_it_raised_is_raised_here() -> None:
    def fail() -> None:
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        in_throwaway_thread(fail, name="once")
