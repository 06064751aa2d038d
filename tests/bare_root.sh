#!/usr/bin/env bash
# deploy/run.sh on a root file system with nothing installed, end to end:
#
#   sudo tests/bare_root.sh [SUITE]        SUITE: a Debian or Ubuntu release, default bookworm
#
# Makes the root with debootstrap, copies this checkout into it, and runs deploy/run.sh there: once aborted in the middle,
# once to the end (at most 3 minutes, it is told if it took longer), once more, once with changed code while a pod runs.
# Processes, mounts and the network live in namespaces that end with this script; packages come through a proxy that
# connects from the machine's own network. Pods' cgroups get a name of this run's and are removed at the end.
#
# With BARE_ROOT_TESTS set, tests/run.sh runs there instead, with the arguments that it holds; with none, some ten minutes.
# BARE_ROOT_MIRROR chooses the package mirror. pip's and apt's environment and configuration files are handed on.
set -euo pipefail

checkout=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
# shellcheck source=deploy/prepare.sh
. "$checkout/deploy/prepare.sh"
# shellcheck source=tests/root_directory.sh
. "$checkout/tests/root_directory.sh"

suite=${1:-bookworm}
readonly LIMIT_S=180
readonly PROXY_PORT=3128

main() {
    require_root
    have debootstrap || install_packages debootstrap
    work=$(mktemp -d /var/tmp/bare-root.XXXXXX)
    name=$(basename "$work")
    root=$work/root
    trap finish EXIT
    say "debootstrap $suite"
    debootstrap --variant=minbase "$suite" "$root" ${BARE_ROOT_MIRROR:+"$BARE_ROOT_MIRROR"} >"$work/debootstrap.log" ||
        { tail -n 20 "$work/debootstrap.log" >&2; die "debootstrap failed"; }
    copy_checkout
    copy_machine_configuration
    # The re-executed half is process 1 of its namespace: when it ends, everything in there does.
    exec 8</proc/self/ns/net
    unshare --mount --propagation private --net --pid --fork --kill-child "$0" --inside "$root"
}

finish() {
    local status=$?
    remove_cgroups
    rm -rf --one-file-system -- "$work"
    if [ "$status" -eq 0 ]; then
        say "bare root ($suite): ok"
    else
        say "bare root ($suite): FAILED"
    fi
    exit "$status"
}

# The half that runs as process 1 of a PID namespace, in a private mount namespace.
inside() {
    root=$1
    local directory
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --make-rslave "$root/sys"
    mount -t tmpfs -o mode=755 dev "$root/dev"
    # Nodes of its own, as a machine has them: those that are mounted from elsewhere are no devices of this /dev.
    cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /dev/kmsg /dev/fuse "$root/dev/"
    mkdir "$root/dev/pts" "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    ln -s /proc/self/fd "$root/dev/fd"
    mount -t tmpfs shm "$root/dev/shm"
    mount -t tmpfs -o mode=755 run "$root/run"
    mkdir -p "$root/run/lock"
    if [ -e "$root/../package-directories" ]; then
        while read -r directory; do
            mount --bind -o ro "$directory" "$root$directory"
        done <"$root/../package-directories"
    fi
    ip link set lo up
    # In a mount namespace of its own: it looks names up as the machine does.
    unshare --mount --propagation private python3 "$checkout/tests/harness/outside_proxy.py" "$PROXY_PORT" 8 &
    exec 8<&-
    export http_proxy=http://127.0.0.1:$PROXY_PORT https_proxy=http://127.0.0.1:$PROXY_PORT no_proxy=127.0.0.1
    until (: <"/dev/tcp/127.0.0.1/$PROXY_PORT") 2>/dev/null; do
        sleep 0.1
    done
    # The proxy answers one request per connection.
    echo 'Acquire::http::Pipeline-Depth "0";' >"$root/etc/apt/apt.conf.d/99-proxy"
    mkdir -p "$root/etc/cri-shim/config.d"
    echo "sandbox: {cgroup_parent: /$(basename "$(dirname "$root")")}" >"$root/etc/cri-shim/config.d/test.yaml"
    enter_root
    if [ -n "${BARE_ROOT_TESTS+set}" ]; then
        # shellcheck disable=SC2086 # words are what it holds
        in_root tests/run.sh $BARE_ROOT_TESTS
    else
        scenario
    fi
}

# Not chroot: who joins a container's mount namespace starts at that namespace's root, and behind a chroot that is still
# the machine's: an exec would run with the machine's files.
enter_root() {
    cd "$root"
    mkdir .outside
    pivot_root . .outside
    umount --lazy /.outside
    rmdir /.outside
    root=""
}

scenario() {
    local started seconds pod

    say "1. aborted while it installs"
    in_root timeout --signal=KILL 25 deploy/run.sh || true

    say "2. to the end"
    started=$SECONDS
    in_root deploy/run.sh
    seconds=$((SECONDS - started))
    say "took $seconds s"
    [ "$seconds" -le "$LIMIT_S" ] || die "deploy/run.sh took $seconds s; $LIMIT_S are allowed"
    expect_daemon

    say "3. again"
    local before
    before=$(daemon_pid)
    in_root deploy/run.sh
    [ "$(daemon_pid)" = "$before" ] || die "the second run restarted a daemon that was current"

    say "4. with newer code while a pod runs"
    in_root cri-shim demo --keep
    pod=$(pause_processes)
    [ -n "$pod" ] || die "cri-shim demo --keep left no pod running"
    echo '# newer' >>"$root/usr/src/cri-shim/cri_shim/__init__.py"
    in_root deploy/run.sh
    [ "$(daemon_pid)" != "$before" ] || die "newer code did not restart the daemon"
    [ "$(pause_processes)" = "$pod" ] || die "the restart changed the pod's processes: $pod before, $(pause_processes) after"
}

in_root() {
    (cd /usr/src/cri-shim && exec "$@")
}

daemon_pid() {
    cat "$root/run/cri-shim.pid"
}

expect_daemon() {
    [ -S "$root/run/cri-shim/cri-shim.sock" ] || die "deploy/run.sh succeeded, but there is no socket"
    [ -d "$root/proc/$(daemon_pid)" ] || die "deploy/run.sh succeeded, but the daemon does not run"
}

# Pids of catatonit, the pause process, as this namespace counts them.
pause_processes() {
    grep -lsx catatonit "$root"/proc/[0-9]*/comm | grep -o '[0-9]*' | sort -n | tr '\n' ' '
}

# Everything else ended with its namespace.
remove_cgroups() {
    local group
    find /sys/fs/cgroup -depth -type d -path "*/$name/*" -o -depth -type d -name "$name" 2>/dev/null |
        while read -r group; do rmdir -- "$group" || true; done
}

if [ "${1:-}" = --inside ]; then
    inside "$2"
else
    main
fi
