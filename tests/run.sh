#!/usr/bin/env bash
# Everything that must be green, in one command, from a fresh checkout on Debian 12 or newer, or Ubuntu:
#
#   sudo tests/run.sh [--unit | --integration] [-k EXPRESSION]
#
#   --unit           formatting, lint, types, layers and the unit tests
#   --integration    the tests on real runc, conmon, CNI plugins and kernel, those with faults, and the parsers' fuzzing
#   -k EXPRESSION    only tests whose names match, as pytest's -k; no other checks
#
# Installs missing Debian packages, and makes .venv in the checkout with the versions of constraints.txt. Every stage is
# run, whatever the others said; the end names those that failed, and the exit status is 1 then.
#
# The integration tests run beside the others, each set on one node of its own: that halves the time on two processors.
# What they say is shown when the others have ended.
set -euo pipefail

checkout=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
# shellcheck source=tests/prepare.sh
. "$checkout/tests/prepare.sh"
readonly STAGES=(
    "ruff format" "ruff check" "mypy" "lint-imports" "unit tests" "coverage" "fault tests" "fuzz tests"
    "integration tests"
)

main() {
    local checks=1 unit=1 integration=1 select=()
    while [ $# -gt 0 ]; do
        case $1 in
        --unit) integration=0 ;;
        --integration) checks=0 unit=0 ;;
        -k)
            [ $# -ge 2 ] || usage
            checks=0
            select=(-k "$2")
            shift
            ;;
        *) usage ;;
        esac
        shift
    done
    require_root
    cd "$checkout"
    hold_lock "$checkout"
    logs=$(mktemp -d)
    trap 'rm -rf -- "$logs"' EXIT
    prepare_tests
    if [ "$checks" -eq 1 ]; then
        stage "ruff format" ruff format --check .
        stage "ruff check" ruff check .
        stage "mypy" mypy
        stage "lint-imports" lint-imports
    fi
    if [ "$integration" -eq 1 ]; then
        # Some faults are tested beside the rest of them, so that both sides take about as long.
        stage "integration tests" pytest -m "integration and not slow" \
            tests/integration tests/faults/test_shims.py "${select[@]}" >"$logs/beside" 2>&1 &
    fi
    if [ "$unit" -eq 1 ]; then
        if [ "${#select[@]}" -gt 0 ]; then
            stage "unit tests" pytest "${select[@]}"
        else
            stage "unit tests" coverage run --data-file "$logs/coverage" -m pytest
            COVERAGE_FILE=$logs/coverage stage "coverage" python -m tests.coverage_floor
        fi
    fi
    if [ "$integration" -eq 1 ]; then
        stage "fault tests" pytest -m "integration and not slow" \
            tests/faults --ignore tests/faults/test_shims.py "${select[@]}"
        stage "fuzz tests" pytest -m "fuzz and not slow" tests/fuzz "${select[@]}"
        wait
        cat "$logs/beside"
    fi
    report
}

usage() {
    echo "usage: tests/run.sh [--unit | --integration] [-k EXPRESSION]" >&2
    exit 2
}

# stage NAME COMMAND...: its output goes to NAME.log, its verdict to NAME.verdict, in the directory of logs.
stage() {
    local name=$1 started=$SECONDS status=0 verdict=ok
    shift
    say "$name"
    "$@" 9<&- 2>&1 | tee "$logs/$name.log" || status=$?
    # pytest: nothing matched the selection.
    if [ "$status" -ne 0 ] && ! { [ "$1" = pytest ] && [ "$status" -eq 5 ]; }; then
        verdict=FAILED
    fi
    echo "$verdict $((SECONDS - started))" >"$logs/$name.verdict"
}

# A line per stage, then one in pytest's form with the sums of all its runs; a failed stage of another kind is an error.
report() {
    local others=0 failed=() name verdict seconds
    echo
    for name in "${STAGES[@]}"; do
        [ -e "$logs/$name.log" ] || continue
        # A stage that was killed has no verdict.
        read -r verdict seconds <"$logs/$name.verdict" || verdict=FAILED seconds=$SECONDS
        printf '%-20s %-7s %4d s\n' "$name" "$verdict" "$seconds"
        [ "$verdict" = ok ] && continue
        failed+=("$name")
        case $name in *tests) ;; *) others=$((others + 1)) ;; esac
    done
    [ "${#failed[@]}" -eq 0 ] || printf 'FAILED: %s\n' "${failed[@]}"
    tail -q -n 1 "$logs"/*.log | awk -v errors="$others" -v seconds="$SECONDS" '
        /^=.* in [0-9.]+s/ {
            for (i = 1; i < NF; i++)
                if ($i ~ /^[0-9]+$/) { kind = $(i + 1); sub(/,$/, "", kind); sub(/^error$/, "errors", kind); sum[kind] += $i }
        }
        END {
            sum["errors"] += errors
            split("failed passed skipped xfailed xpassed errors", kinds, " ")
            for (i = 1; i <= 6; i++)
                if (sum[kinds[i]]) text = text (text ? ", " : "") sum[kinds[i]] " " kinds[i]
            printf "===== %s in %d.00s =====\n", (text ? text : "no tests ran"), seconds
        }'
    [ "${#failed[@]}" -eq 0 ]
}

main "$@"
