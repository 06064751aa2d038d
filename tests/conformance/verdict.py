"""What a run of critest means: its report against the list of known skips and the list of what has passed before.

Rules:
- `skips.toml` is a fixed list with a reason for each entry. Whatever is skipped or fails and isn't on it, is a
  complaint; so is an entry for a failure that no longer fails, and one that no spec has.
- Some skips depend on the machine (a kernel's security module, a runtime's version). A spec listed as skipped that
  passes here is a note, and isn't added to what has passed.
- `passed.txt` may only grow: a spec in it that doesn't pass is a complaint, listed as a skip or not.
- This module is pure. It knows Ginkgo's JSON report, not how it came about.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

NAME_SEPARATOR = " / "
_PREFIX = "[k8s.io] "


class Outcome(StrEnum):
    """What became of a spec."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    NOT_SELECTED = "not selected"
    """Left out by a filter: the caller's, or critest's own of benchmarks."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One spec of a run."""

    name: str
    outcome: Outcome
    message: str = ""
    """Why it failed or was skipped."""
    seconds: float = 0.0

    @property
    def group(self) -> str:
        """The outermost of the headings it stands under."""
        return self.name.split(NAME_SEPARATOR)[0]


class Skip(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An entry of the list: specs that can't pass, and why."""

    spec: str
    """A regular expression, searched for in the name."""
    reason: str
    outcome: Literal["skipped", "failed"] = "skipped"


@dataclass
class Verdict:
    """Complaints make a run a failure; notes are for a person to act on."""

    complaints: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    new_passes: list[str] = field(default_factory=list)


class _Failure(msgspec.Struct, rename="pascal"):
    message: str = ""


class _SpecReport(msgspec.Struct, rename="pascal"):
    leaf_node_type: str
    leaf_node_text: str
    state: str
    container_hierarchy_texts: list[str] | None = None
    num_attempts: int = 0
    run_time: int = 0
    failure: _Failure | None = None


class _SuiteReport(msgspec.Struct, rename="pascal"):
    suite_succeeded: bool
    spec_reports: list[_SpecReport]
    special_suite_failure_reasons: list[str] | None = None


class _SkipList(msgspec.Struct, forbid_unknown_fields=True):
    skip: list[Skip]


def parse_report(data: bytes) -> list[Spec]:
    """The specs of a JSON report. Raises: ValueError when the suite itself failed, so that specs say nothing."""
    suites = msgspec.json.decode(data, type=list[_SuiteReport])
    specs = []
    for suite in suites:
        broken = list(suite.special_suite_failure_reasons or [])
        for report in suite.spec_reports:
            if report.leaf_node_type == "It":
                specs.append(_spec(report))
            elif report.state != "passed":
                message = report.failure.message if report.failure else report.state
                broken.append(f"{report.leaf_node_type}: {message}")
        if not suite.suite_succeeded and not any(s.outcome is Outcome.FAILED for s in specs):
            broken.append("the suite failed without a failed spec")
        if broken:
            raise ValueError("; ".join(broken))
    twice = [name for name, count in Counter(spec.name for spec in specs).items() if count > 1]
    if twice:
        raise ValueError(f"names that several specs have: {', '.join(twice)}")
    return specs


def parse_skips(data: bytes) -> list[Skip]:
    """The list of skips. Raises: ValueError naming what is wrong with it."""
    skips = msgspec.toml.decode(data, type=_SkipList).skip
    for skip in skips:
        if not skip.reason.strip():
            raise ValueError(f"{skip.spec}: no reason given")
        try:
            re.compile(skip.spec)
        except re.error as error:
            raise ValueError(f"{skip.spec}: {error}") from error
    return skips


def judge(
    specs: Sequence[Spec], skips: Sequence[Skip], passed: Collection[str], *, whole: bool
) -> Verdict:
    """Compare. `whole`: nothing was left out by us, so what is missing is missing."""
    verdict = Verdict()
    used: set[Skip] = set()
    for spec in sorted(specs, key=lambda spec: spec.name):
        if spec.outcome is Outcome.NOT_SELECTED and not whole:
            continue
        entry = next((skip for skip in skips if re.search(skip.spec, spec.name)), None)
        if entry is not None:
            used.add(entry)
        _judge_one(spec, entry, spec.name in passed, verdict)
    if whole:
        verdict.complaints += [
            f"no such spec any more: {name}"
            for name in sorted(set(passed) - {s.name for s in specs})
        ]
        verdict.complaints += [
            f"no spec is meant by this entry of skips.toml, take it out: {skip.spec}"
            for skip in skips
            if skip not in used
        ]
    return verdict


def _judge_one(spec: Spec, entry: Skip | None, has_passed: bool, verdict: Verdict) -> None:
    if spec.outcome is Outcome.PASSED:
        if entry is None:
            if not has_passed:
                verdict.new_passes.append(spec.name)
        elif entry.outcome == "failed":
            verdict.complaints.append(f"passes now, take it out of skips.toml: {spec.name}")
        else:
            verdict.notes.append(f"passes here, although skips.toml has it: {spec.name}")
        return
    what = "failed" if spec.outcome is Outcome.FAILED else "skipped"
    because = f": {spec.message}" if spec.message else ""
    if has_passed:
        verdict.complaints.append(f"{what}, and has passed before: {spec.name}{because}")
    elif entry is None:
        verdict.complaints.append(f"{what}, and skips.toml hasn't it: {spec.name}{because}")
    elif entry.outcome != what:
        verdict.complaints.append(
            f"{what}, and skips.toml says {entry.outcome}: {spec.name}{because}"
        )


def _spec(report: _SpecReport) -> Spec:
    headings = [*(report.container_hierarchy_texts or []), report.leaf_node_text]
    outcome = Outcome.FAILED
    if report.state == "passed":
        outcome = Outcome.PASSED
    elif report.state in ("skipped", "pending"):
        outcome = Outcome.SKIPPED if report.num_attempts else Outcome.NOT_SELECTED
    return Spec(
        name=NAME_SEPARATOR.join(headings).removeprefix(_PREFIX),
        outcome=outcome,
        message=" ".join(report.failure.message.split())[:400] if report.failure else "",
        seconds=report.run_time / 1e9,
    )
