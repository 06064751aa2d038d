"""Pipes of a session, closed as a whole."""

from __future__ import annotations

import os

import pytest

from cri_shim.oci.attach_pipes import Pipes


def test_all_ends_are_closed_and_streams_that_nobody_wants_have_none() -> None:
    ends = [os.pipe(), os.pipe()]
    Pipes(stdout=ends[0], stderr=ends[1]).close()
    for fd in (*ends[0], *ends[1]):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    Pipes().close()
