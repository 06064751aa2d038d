from __future__ import annotations

from pathlib import Path

from cri_shim.config import (
    Config,
    ReloadPlan,
    load_config,
    reloadable_changes,
    without_effect,
)


def changed(*overrides: str) -> ReloadPlan:
    return reloadable_changes(
        Config(), load_config(default_file=Path("/none"), overrides=overrides)
    )


def test_nothing_changed_means_nothing_to_do() -> None:
    assert changed() == ReloadPlan(Config(), (), ())


def test_changes_are_sorted_by_whether_a_running_daemon_applies_them() -> None:
    plan = changed("log.level=debug", "log.format=json", "root=/x", "images.auth_file=/a")
    assert plan.applied == ("log.level", "images.auth_file")
    assert plan.needs_restart == ("root", "log.format")


def test_only_what_is_applied_gets_into_effect() -> None:
    plan = changed(
        "log.level=debug", "log.format=json", "streaming.token_ttl=5s", "streaming.port=1"
    )
    assert (plan.config.log.level, plan.config.log.format) == ("debug", "auto")
    assert (plan.config.streaming.token_ttl_s, plan.config.streaming.port) == (5.0, 10350)


def test_handlers_are_told_one_by_one() -> None:
    plan = changed("runtime.handlers={kata: null, runsc: {path: runsc}, runc: {args: [-v]}}")
    assert plan.applied == (
        *("runtime.handlers.runc", "runtime.handlers.kata", "runtime.handlers.runsc"),
    )
    assert list(plan.config.runtime.handlers) == ["runc", "crun", "runsc"]


def test_what_the_interface_promises_to_reload_is_reloaded() -> None:
    plan = changed(
        "log.level=debug",
        "images.registry_config=/x",
        "runtime.default_handler=crun",
        "images.auth_file=/y",
    )
    assert plan.needs_restart == ()


def test_keys_that_nothing_heeds_yet_are_named_only_when_they_were_set() -> None:
    assert without_effect(Config()) == ()
    config = load_config(
        None,
        ["tracing.endpoint=http://127.0.0.1:4317", "streaming.port=10400", "log.level=debug"],
        default_file=Path("/nonexistent"),
    )
    assert set(without_effect(config)) == {"tracing.endpoint"}
