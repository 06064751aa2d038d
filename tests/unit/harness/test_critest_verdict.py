"""What makes a run of critest a failure, and what doesn't."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conformance.critest import PASSED_FILE, SKIPS_FILE
from tests.conformance.verdict import Outcome, Skip, Spec, judge, parse_report, parse_skips

NO_NRI = Skip(spec="^NRI / ", reason="needs a runtime with NRI")
PINNED = Skip(spec="by digest$", reason="pins a digest", outcome="failed")


def spec(name: str, outcome: Outcome, message: str = "") -> Spec:
    return Spec(name, outcome, message)


def passed(name: str) -> Spec:
    return spec(name, Outcome.PASSED)


def failed(name: str) -> Spec:
    return spec(name, Outcome.FAILED, "broken")


def skipped(name: str) -> Spec:
    return spec(name, Outcome.SKIPPED, "can't")


@pytest.mark.parametrize(
    ("result", "complaint"),
    [
        (failed("Pods / runs"), "failed, and has passed before: Pods / runs: broken"),
        (skipped("Pods / runs"), "skipped, and has passed before: Pods / runs: can't"),
        (failed("Pods / new"), "failed, and skips.toml hasn't it: Pods / new: broken"),
        (skipped("Pods / new"), "skipped, and skips.toml hasn't it: Pods / new: can't"),
        (failed("NRI / one"), "failed, and skips.toml says skipped: NRI / one: broken"),
        (skipped("Pull by digest"), "skipped, and skips.toml says failed: Pull by digest: can't"),
        (passed("Pull by digest"), "passes now, take it out of skips.toml: Pull by digest"),
    ],
)
def test_what_was_not_expected_is_a_complaint(result: Spec, complaint: str) -> None:
    verdict = judge([result], [NO_NRI, PINNED], {"Pods / runs"}, whole=False)
    assert verdict.complaints == [complaint]


def test_what_was_expected_is_none() -> None:
    specs = [passed("Pods / runs"), skipped("NRI / one"), failed("Pull by digest")]
    verdict = judge(specs, [NO_NRI, PINNED], {"Pods / runs"}, whole=True)
    assert (verdict.complaints, verdict.notes, verdict.new_passes) == ([], [], [])


def test_a_new_pass_may_be_kept() -> None:
    verdict = judge([passed("Pods / new")], [], set(), whole=True)
    assert (verdict.complaints, verdict.new_passes) == ([], ["Pods / new"])


def test_a_pass_where_a_skip_depends_on_the_machine_is_a_note_and_not_kept() -> None:
    verdict = judge([passed("NRI / one")], [NO_NRI], set(), whole=True)
    assert verdict.notes == ["passes here, although skips.toml has it: NRI / one"]
    assert (verdict.complaints, verdict.new_passes) == ([], [])


def test_lists_must_not_name_what_is_no_longer_there() -> None:
    verdict = judge([], [NO_NRI], {"Pods / old"}, whole=True)
    assert verdict.complaints == [
        "no such spec any more: Pods / old",
        "no spec is meant by this entry of skips.toml, take it out: ^NRI / ",
    ]


def test_a_selection_says_nothing_about_what_it_leaves_out() -> None:
    specs = [passed("Pods / runs"), spec("Pods / other", Outcome.NOT_SELECTED)]
    verdict = judge(specs, [NO_NRI], {"Pods / runs", "Pods / other", "gone"}, whole=False)
    assert verdict.complaints == []


def test_a_whole_run_must_have_run_everything_that_passed_before() -> None:
    verdict = judge([spec("Pods / runs", Outcome.NOT_SELECTED)], [], {"Pods / runs"}, whole=True)
    assert verdict.complaints == ["skipped, and has passed before: Pods / runs"]


def ginkgo(*specs: dict[str, Any], succeeded: bool = True, **suite: Any) -> bytes:
    return json.dumps(
        [{"SuiteSucceeded": succeeded, "SpecReports": specs, "RunTime": 1, **suite}]
    ).encode()


def it(text: str, state: str, *, attempts: int = 1, message: str = "") -> dict[str, Any]:
    report: dict[str, Any] = {
        "ContainerHierarchyTexts": ["[k8s.io] Pods", "when asked"],
        "LeafNodeType": "It",
        "LeafNodeText": text,
        "State": state,
        "NumAttempts": attempts,
        "RunTime": 1_500_000_000,
    }
    if message:
        report["Failure"] = {"Message": message}
    return report


def test_a_report_gives_each_spec_its_headings_and_outcome() -> None:
    specs = parse_report(
        ginkgo(
            it("runs", "passed"),
            it("waits", "timedout", message="too\nlong"),
            it("can't", "skipped", message="no kernel"),
            it("was left out", "skipped", attempts=0),
            {"LeafNodeType": "BeforeSuite", "LeafNodeText": "", "State": "passed"},
            succeeded=False,
        )
    )
    assert [(s.name, s.outcome, s.message) for s in specs] == [
        ("Pods / when asked / runs", Outcome.PASSED, ""),
        ("Pods / when asked / waits", Outcome.FAILED, "too long"),
        ("Pods / when asked / can't", Outcome.SKIPPED, "no kernel"),
        ("Pods / when asked / was left out", Outcome.NOT_SELECTED, ""),
    ]
    assert (specs[0].group, specs[0].seconds) == ("Pods", 1.5)


@pytest.mark.parametrize(
    ("report", "cause"),
    [
        (
            ginkgo(
                {
                    "LeafNodeType": "BeforeSuite",
                    "LeafNodeText": "",
                    "State": "failed",
                    "Failure": {"Message": "no connection"},
                },
                succeeded=False,
            ),
            "BeforeSuite: no connection",
        ),
        (
            ginkgo(SpecialSuiteFailureReasons=["Suite Timeout Elapsed"], succeeded=False),
            "Suite Timeout Elapsed",
        ),
        (ginkgo(succeeded=False), "the suite failed without a failed spec"),
        (ginkgo(it("runs", "passed"), it("runs", "passed")), "names that several specs have"),
        (b"not json", "malformed"),
    ],
)
def test_a_suite_that_broke_is_no_result(report: bytes, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        parse_report(report)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("[[skip]]\nspec = 'a'\nreason = ' '", "a: no reason given"),
        ("[[skip]]\nspec = 'a('\nreason = 'b'", "a\\("),
        ("[[skip]]\nspec = 'a'\nreason = 'b'\nretry = 3", "retry"),
        ("[[skip]]\nspec = 'a'\nreason = 'b'\noutcome = 'passed'", "outcome"),
    ],
)
def test_an_entry_needs_a_pattern_and_a_reason(text: str, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        parse_skips(text.encode())


def test_the_lists_kept_here_can_be_read_and_agree() -> None:
    passed_names = PASSED_FILE.read_text().splitlines()
    assert passed_names == sorted(set(passed_names))
    specs = [passed(name) for name in passed_names]
    verdict = judge(specs, parse_skips(SKIPS_FILE.read_bytes()), passed_names, whole=False)
    assert (verdict.complaints, verdict.notes) == ([], [])
