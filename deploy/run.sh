#!/usr/bin/env bash
# From a checkout to a serving daemon on this node, in one command:
#
#   sudo deploy/run.sh
#
# 1. Installs missing packages, and this checkout into a virtual environment.
# 2. Gives the node a private bridge network if it has no CNI configuration.
# 3. Starts the daemon, or restarts it if the code has changed.
# 4. Runs a pod to prove the node.
# May be repeated at any time: containers keep running. Does not touch the configuration in /etc/cri-shim.
set -euo pipefail

checkout=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
# shellcheck source=deploy/prepare.sh
. "$checkout/deploy/prepare.sh"

readonly INSTALL_DIR=/opt/cri-shim
readonly COMMAND=/usr/local/bin/cri-shim
readonly UNIT=/etc/systemd/system/cri-shim.service
readonly LOG_FILE=/var/log/cri-shim.log
readonly PID_FILE=/run/cri-shim.pid
readonly RUNNING_FILE=/run/cri-shim.running
readonly READY_S=60
readonly STOP_S=60

main() {
    require_root
    mkdir -p "$INSTALL_DIR"
    hold_lock "$INSTALL_DIR"
    local packages
    read -ra packages <<<"$(missing_runtime_packages | tr '\n' ' ')"
    install_packages "${packages[@]}"
    prepare_python
    install_checkout
    prepare_network
    say "checking this node: cri-shim check"
    "$COMMAND" check || die "this node can't run the daemon yet: apply the remedies of the failed rows, then run this again"
    start_daemon
    say "running a pod: cri-shim demo"
    "$COMMAND" demo || fail_with_log "the demo failed; the daemon is running"
    say_farewell
}

# Each version of the code has a directory of its own, and the link points to it only when it is complete. So an aborted
# run breaks nothing, and a running daemon keeps the modules that it was started with.
install_checkout() {
    local files
    mapfile -t files <<<"$(cd "$checkout" && find cri_shim pyproject.toml constraints.txt README.md LICENSE \
        -type f ! -name '*.pyc' | LC_ALL=C sort)"
    installed=$(cd "$checkout" && fingerprint "$INSTALL_DIR" "${files[@]}")
    local venv=$INSTALL_DIR/venv-$installed
    if [ ! -e "$venv/complete" ] || ! "$venv/bin/cri-shim" --version >/dev/null 2>&1; then
        say "installing cri-shim into $INSTALL_DIR"
        # Built from a copy: the build leaves files beside its sources.
        local copy=$INSTALL_DIR/source
        rm -rf -- "$copy"
        mkdir "$copy"
        (cd "$checkout" && tar -cf - "${files[@]}") | tar -xf - -C "$copy" --no-same-owner
        make_venv "$venv" "$checkout/constraints.txt" "$copy"
        rm -rf -- "$copy"
        touch "$venv/complete"
    fi
    ln -sfn -- "venv-$installed" "$INSTALL_DIR/venv"
    ln -sf -- "$INSTALL_DIR/venv/bin/cri-shim" "$COMMAND"
}

remove_old_versions() {
    local venv
    for venv in "$INSTALL_DIR"/venv-*; do
        [ "$venv" = "$INSTALL_DIR/venv-$installed" ] || rm -rf -- "$venv"
    done
}

prepare_network() {
    if have modprobe; then
        # This fails if they are built into the kernel, which does no harm: `cri-shim check` reports what is missing.
        modprobe -a overlay br_netfilter 2>/dev/null || true
    fi
    local directory name=10-cri-shim.conflist
    directory=$(setting cni.conf_dir)
    if [ -z "$(find "$directory" -maxdepth 1 \( -name '*.conflist' -o -name '*.conf' -o -name '*.json' \) 2>/dev/null)" ]; then
        local subnet
        subnet=$(free_subnet) || die "10.89.0.0/16 to 10.99.0.0/16 are all routed here: write $directory/$name yourself"
        say "this node has no CNI configuration: $directory/$name, bridge cri-shim0, $subnet"
        mkdir -p "$directory"
        sed "s|10\.89\.0\.0/16|$subnet|" "$checkout/deploy/cni/$name" >"$directory/$name.unfinished"
        mv -- "$directory/$name.unfinished" "$directory/$name"
    fi
    if [ -e "$directory/$name" ] && [ "$(cat /proc/sys/net/ipv4/ip_forward)" != 1 ]; then
        say "letting pods out: net.ipv4.ip_forward=1"
        echo 1 >/proc/sys/net/ipv4/ip_forward || die "can't set net.ipv4.ip_forward: pods would reach this node only"
        mkdir -p /etc/sysctl.d
        echo 'net.ipv4.ip_forward = 1' >/etc/sysctl.d/60-cri-shim.conf
    fi
}

# Prints the first candidate that no route of this node overlaps.
free_subnet() {
    local second
    for second in 89 90 91 92 93 94 95 96 97 98 99; do
        if ! ip -4 route show table all | grep -Eq "(^|[[:space:]])10\.$second\."; then
            echo "10.$second.0.0/16"
            return
        fi
    done
    return 1
}

start_daemon() {
    local pid
    pid=$(daemon_pid)
    if uses_systemd; then
        start_unit "$pid"
    else
        start_in_background "$pid"
    fi
    wait_ready
    echo "$installed" >"$RUNNING_FILE"
    remove_old_versions
}

uses_systemd() {
    [ -d /run/systemd/system ] && [ "$(cat /proc/1/comm)" = systemd ] && have systemctl
}

is_current() {
    [ "$(cat "$RUNNING_FILE" 2>/dev/null)" = "$installed" ]
}

# start_unit PID: the pid of the daemon that runs now, or nothing
start_unit() {
    if ! cmp -s "$checkout/deploy/systemd/cri-shim.service" "$UNIT"; then
        cp -- "$checkout/deploy/systemd/cri-shim.service" "$UNIT"
        systemctl daemon-reload
        rm -f -- "$RUNNING_FILE"
    fi
    systemctl enable --quiet cri-shim.service
    if systemctl is-active --quiet cri-shim.service; then
        if is_current; then
            say "the daemon is running and current"
        else
            say "restarting the daemon (containers keep running)"
            systemctl restart cri-shim.service || fail_with_log "the daemon did not start"
        fi
        return
    fi
    [ -z "$1" ] || stop_daemon "$1"
    say "starting the daemon: systemctl start cri-shim"
    systemctl restart cri-shim.service || fail_with_log "the daemon did not start"
}

# start_in_background PID
start_in_background() {
    if [ -n "$1" ]; then
        if is_current; then
            say "the daemon is running (pid $1) and current"
            return
        fi
        say "restarting the daemon (containers keep running)"
        stop_daemon "$1"
    else
        say "starting the daemon in the background, since systemd does not run here"
    fi
    # Descriptor 9 is this script's lock.
    setsid "$COMMAND" serve </dev/null >>"$LOG_FILE" 2>&1 9<&- &
    echo $! >"$PID_FILE"
}

# stop_daemon PID: waits until its calls have ended
stop_daemon() {
    kill -TERM "$1" 2>/dev/null || return 0
    local deadline=$((SECONDS + STOP_S))
    while is_daemon "$1"; do
        [ "$SECONDS" -lt "$deadline" ] || die "the running daemon (pid $1) does not stop: see $(log_command); then kill -9 $1"
        sleep 0.1
    done
}

is_daemon() {
    { tr '\0' ' ' <"/proc/$1/cmdline"; } 2>/dev/null | grep -q 'cri[-_]shim.* serve'
}

# Prints the pid of the running daemon, by any starter: the daemon answers with it, or the file has it.
daemon_pid() {
    local pid
    pid=$(ask_daemon 2>/dev/null) || pid=$(cat "$PID_FILE" 2>/dev/null) || return 0
    if [ -n "$pid" ] && is_daemon "$pid"; then
        echo "$pid"
    fi
}

wait_ready() {
    local deadline=$((SECONDS + READY_S)) pid
    until ask_daemon >/dev/null 2>&1; do
        if ! uses_systemd; then
            pid=$(cat "$PID_FILE")
            if [ ! -d "/proc/$pid" ]; then
                fail_with_log "the daemon ended while starting"
            fi
        fi
        [ "$SECONDS" -lt "$deadline" ] || fail_with_log "the daemon is not ready after $READY_S s"
        sleep 0.2
    done
    say "the daemon is ready (pid $(ask_daemon))"
}

# Prints the daemon's pid if it answers and is ready.
ask_daemon() {
    "$INSTALL_DIR/venv/bin/python" - "$(socket_path)" <<'END'
import sys
from pathlib import Path
from cri_shim._pb.admin.v1.admin_pb2 import InfoRequest
from cri_shim.rpc.client import Client

with Client(Path(sys.argv[1])) as client:
    print(client.admin.Info(InfoRequest(), timeout=5).pid)
END
}

socket_path() {
    local url
    for url in $(setting listen); do
        case $url in
        unix://*)
            echo "${url#unix://}"
            return
            ;;
        esac
    done
    die "listen: the configuration names no unix socket"
}

# A value of the effective configuration; a list's items one a line.
# setting KEY
setting() {
    "$INSTALL_DIR/venv/bin/python" - "$1" <<'END' || die "the configuration is not valid: cri-shim config check"
import operator, sys
from cri_shim.config import load_config

value = operator.attrgetter(sys.argv[1])(load_config())
print(*(value if isinstance(value, tuple) else [value]), sep="\n")
END
}

fail_with_log() {
    echo "the end of the daemon's log:" >&2
    if uses_systemd; then
        journalctl -u cri-shim --no-pager --lines=10 --output=cat >&2 || true
    else
        tail -n 10 "$LOG_FILE" >&2 || true
    fi
    die "$1; see the lines above, and more in its log: $(log_command)"
}

log_command() {
    if uses_systemd; then
        echo "journalctl -u cri-shim"
    else
        echo "$LOG_FILE"
    fi
}

say_farewell() {
    local socket
    socket=$(socket_path)
    cat <<END

cri-shim is serving on unix://$socket. Its log: $(log_command)

crictl:   put these two lines into /etc/crictl.yaml (deploy/crictl.yaml has them)
            runtime-endpoint: unix://$socket
            image-endpoint: unix://$socket
kubelet:  start it with
            --container-runtime-endpoint=unix://$socket
images:   crictl pull NAME, or without a registry: cri-shim image import FILE
END
}

main "$@"
