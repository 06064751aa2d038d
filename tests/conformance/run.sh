#!/usr/bin/env bash
# The clients that others wrote, against the daemon: scripts of crictl commands, then critest whole, in random order and
# without retries:
#
#   sudo tests/conformance/run.sh [--scripts] [--critest] [OPTION...]
#
#   --scripts        only the crictl scripts
#   --critest        only critest
#   --runs N         critest N times, each time with another order and a new daemon
#   --seed N         of the first order; each run prints its own
#   --focus REGEX    only specs of critest whose names match
#   --websocket      critest's streams over WebSocket instead of SPDY; without --focus they are tested so besides
#   --runsc          critest's pods in gVisor, judged by skips-runsc.toml; needs runsc on PATH
#   --shim           critest's pods in containerd-shim-runc-v2, judged as those of runc
#   --runtime FILE   the handler runc's executable for critest, e.g. a runc that knows ID-mapped mounts
#   --accept         add what passed in every run to passed.txt
#   --reports DIR    keep critest's reports and outputs and the daemon's logs here; without it only those of failures
#
# Needs crictl and critest of cri-tools, v1.36 or newer, on PATH: names in skips.toml and passed.txt are that version's.
# Everything else is installed as tests/run.sh does it. The images are built here, from Debian packages that are
# downloaded once into the user's cache; nothing is pulled from the outside.
set -euo pipefail

checkout=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
# shellcheck source=tests/prepare.sh
. "$checkout/tests/prepare.sh"

main() {
    local scripts=1 critest=1 whole=1 options=() status=0
    while [ $# -gt 0 ]; do
        case $1 in
        --scripts) critest=0 ;;
        --critest) scripts=0 ;;
        --accept | --websocket) options+=("$1") ;;
        --runsc | --shim) scripts=0 whole=0 options+=("$1") ;;
        --runs | --seed | --focus | --runtime | --reports)
            [ $# -ge 2 ] || usage
            [ "$1" != --focus ] || whole=0
            options+=("$1" "$2")
            shift
            ;;
        *) usage ;;
        esac
        shift
    done
    [ "$scripts$critest" != 00 ] || usage
    require_root
    [ "$scripts" -eq 0 ] || have crictl || die "crictl is not on PATH: put crictl of cri-tools v1.36 or newer there"
    [ "$critest" -eq 0 ] || have critest || die "critest is not on PATH: put critest of cri-tools v1.36 or newer there"
    cd "$checkout"
    hold_lock "$checkout"
    prepare_tests
    if [ "$scripts" -eq 1 ]; then
        say "crictl scripts"
        pytest -m conformance tests/conformance 9<&- || status=1
    fi
    if [ "$critest" -eq 1 ]; then
        say "critest"
        python -m tests.conformance.critest "${options[@]}" 9<&- || status=1
        if [ "$whole" -eq 1 ]; then
            say "critest's streams over WebSocket"
            python -m tests.conformance.critest --focus Streaming --websocket 9<&- || status=1
        fi
    fi
    return "$status"
}

usage() {
    echo "usage: tests/conformance/run.sh [--scripts] [--critest] [--runs N] [--seed N] [--focus REGEX] [--websocket]" \
        "[--runsc | --shim] [--runtime FILE] [--accept] [--reports DIR]" >&2
    exit 2
}

main "$@"
