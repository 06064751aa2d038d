#!/usr/bin/env bash
# Run in the guest by run.sh: what only a machine with systemd, cgroup v2 and AppArmor can show. Every stage is run,
# whatever the ones before said; the end names those that failed, and the exit status is 1 then.
#
#   tests/guest/inside.sh [-k EXPRESSION]
#
#   -k EXPRESSION    only tests whose names match, as pytest's -k; nothing else
set -euo pipefail

cd -- "$(dirname -- "$0")/../.."
# Emulation takes some ten times as long.
export CRI_SHIM_TEST_SLOWNESS=${CRI_SHIM_TEST_SLOWNESS:-10}
readonly PYTEST=(pytest -v --color=no --tb=short --durations=5 -o timeout=1200)
# What is asked for can be had here: a spec that is skipped is one that was not tested.
readonly CRITEST=(python -m tests.conformance.critest --no-skips)
report=()
failed=0

main() {
    local select=("$@")
    if [ $# -eq 0 ]; then
        stage "cri-shim check" cri-shim check
    fi
    stage "guest tests" "${PYTEST[@]}" -m guest tests/guest "${select[@]}"
    if [ $# -eq 0 ]; then
        stage "cgroup tests" cgroup_tests
        stage "specs, runc" specs runc
        stage "specs, crun" specs crun
        stage "updates, crun" with_runtime crun "${PYTEST[@]}" -m integration tests/integration/test_container_updates.py
        stage "user namespaces, crun" with_runtime crun "${PYTEST[@]}" -m integration tests/integration/test_user_namespaces.py
        if command -v critest >/dev/null; then
            stage "critest, runc" "${CRITEST[@]}" --focus AppArmor
            stage "critest, crun" "${CRITEST[@]}" --focus 'AppArmor|UserNamespaces' --runtime crun
        else
            report+=("critest               not there: see GUEST_PROGRAMS of run.sh")
        fi
    fi
    printf '\n'
    printf '%s\n' "${report[@]}"
    return "$failed"
}

# stage NAME COMMAND...
stage() {
    local name=$1 started=$SECONDS verdict=ok
    shift
    printf '== %s\n' "$name"
    "$@" || { verdict=FAILED; failed=1; }
    report+=("$(printf '%-22s %-7s %4d s' "$name" "$verdict" $((SECONDS - started)))")
}

# with_runtime RUNTIME COMMAND...
with_runtime() {
    local runtime=$1
    shift
    CRI_SHIM_TEST_RUNTIME=$(command -v "$runtime") "$@"
}

# The integration tests for which it matters which cgroups there are: elsewhere they meet v1's.
cgroup_tests() {
    "${PYTEST[@]}" -m "integration and not slow" -k "cgroup or oom or limit or resources or stats or updates" \
        tests/integration/{host/test_cgroups_real,oci/test_conmon_real,test_container_lifecycle,test_container_setup}.py \
        tests/integration/test_{container_updates,leak_guard,pod_lifecycle,stats}.py
}

# specs RUNTIME: it takes every golden runtime-spec.
specs() {
    with_runtime "$1" "${PYTEST[@]}" -m integration tests/integration/oci/test_spec_real.py -k "golden or memory_limit"
}

main "$@"
