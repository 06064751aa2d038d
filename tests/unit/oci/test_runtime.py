from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cri_shim.errors import UnknownRuntimeHandlerError
from cri_shim.host.process import Reaper
from cri_shim.oci.cli import CliRuntime
from cri_shim.oci.runtime import HandlerSettings, Runtime, RuntimeFeatures, Runtimes


def _runtime(name: str) -> Runtime:
    return CliRuntime(HandlerSettings(name, name, Path("/run/x")), Reaper(), timeout_s=1)


def test_empty_handler_means_the_default() -> None:
    runc, crun = _runtime("runc"), _runtime("crun")
    runtimes = Runtimes([runc, crun], default_handler="crun")

    assert runtimes.get("") is crun
    assert runtimes.get("runc") is runc
    assert list(runtimes) == [runc, crun]


def test_unknown_handler_is_refused_with_those_there_are() -> None:
    runtimes = Runtimes([_runtime("runc"), _runtime("crun")], default_handler="runc")

    with pytest.raises(
        UnknownRuntimeHandlerError, match=r"'kata' is not configured \(configured: crun, runc\)"
    ):
        runtimes.get("kata")


def test_default_that_is_not_configured_is_refused_at_once() -> None:
    with pytest.raises(UnknownRuntimeHandlerError, match=r"'runc' .*\(configured: none\)"):
        Runtimes([], default_handler="runc")


def test_features_tell_what_kubelet_asks_for() -> None:
    new = msgspec.json.decode(
        b'{"ociVersionMin":"1.0.0","ociVersionMax":"1.2.0","mountOptions":["ro","rro"],'
        b'"linux":{"namespaces":["user","pid"],"mountExtensions":{"idmap":{"enabled":true}}}}',
        type=RuntimeFeatures,
    )
    old = msgspec.json.decode(
        b'{"mountOptions":null,"linux":{"namespaces":["user"]},"hooks":[]}', type=RuntimeFeatures
    )

    assert new.oci_version_max == "1.2.0"
    assert new.recursive_read_only_mounts
    assert new.user_namespaces
    assert not old.recursive_read_only_mounts
    assert not old.user_namespaces
    assert not RuntimeFeatures().user_namespaces
    assert not new.reads_user_mappings
    runc = RuntimeFeatures(annotations={"org.opencontainers.runc.version": "1.3.0"})
    assert runc.reads_user_mappings


def test_runc_takes_no_user_beyond_31_bits() -> None:
    runc = RuntimeFeatures(annotations={"org.opencontainers.runc.version": "1.1.5"})
    assert runc.max_user_id == 2**31 - 1
    assert RuntimeFeatures().max_user_id == 2**32 - 2
