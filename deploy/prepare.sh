# Prepares a machine for deploy/run.sh and tests/run.sh: Debian packages and a virtual environment. To be sourced.
# Every function may be repeated, and continues where an aborted run stopped.
# shellcheck shell=bash

readonly MINIMUM_PYTHON=3.11
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

say() {
    printf '==> %s\n' "$*"
}

die() {
    printf '%s: %s\n' "$0" "$*" >&2
    exit 1
}

have() {
    command -v "$1" >/dev/null 2>&1
}

require_root() {
    [ "$(id -u)" -eq 0 ] || die "this needs root: run it with sudo"
}

# Waits for another run in the same directory. The lock is on the directory itself, and ends with this process.
# hold_lock DIRECTORY
hold_lock() {
    exec 9<"$1"
    flock --nonblock 9 && return
    say "another run holds $1: waiting for it"
    flock 9
}

has_library() {
    local directory
    for directory in /lib /usr/lib /lib64 /usr/lib64 /usr/local/lib; do
        [ -z "$(find "$directory/" -maxdepth 2 -name "$1" -print -quit 2>/dev/null)" ] || return 0
    done
    return 1
}

has_plugins() {
    local name
    for name in bridge host-local portmap loopback; do
        [ -x "/opt/cni/bin/$name" ] || [ -x "/usr/lib/cni/$name" ] || return 1
    done
}

# Whether a program runs without its distribution's libraries, as it must in an image that contains nothing else.
is_static() {
    [ -x "$1" ] && ! ldd "$1" >/dev/null 2>&1
}

# Prints the names of the Debian packages that are missing, one a line.
missing_runtime_packages() {
    have runc || echo runc
    have conmon || echo conmon
    have iptables || echo iptables
    have ip || echo iproute2
    is_static /usr/bin/catatonit || echo catatonit
    is_static /bin/busybox || echo busybox-static
    has_plugins || echo containernetworking-plugins
    has_library libarchive.so.13 || echo libarchive13
    [ -e /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
}

# install_packages NAME...
install_packages() {
    [ $# -gt 0 ] || return 0
    have apt-get || die "missing: $*; this is no Debian or Ubuntu, so install what these packages hold yourself"
    say "installing $*"
    # Finish what an aborted run left unpacked.
    [ -z "$(dpkg --audit 2>&1)" ] || DEBIAN_FRONTEND=noninteractive dpkg --configure -a
    local apt=(apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
    "${apt[@]}" update || die "apt-get update failed: see the lines above; check the network and /etc/apt"
    local names=() name
    for name in "$@"; do
        # Releases with 64-bit time renamed their libraries.
        if ! is_installable "$name" && is_installable "${name}t64"; then
            name="${name}t64"
        fi
        names+=("$name")
    done
    DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y --no-install-recommends "${names[@]}" >/dev/null ||
        die "apt-get install ${names[*]} failed: see the lines above"
}

is_installable() {
    LC_ALL=C apt-cache policy "$1" 2>/dev/null | grep -q 'Candidate: [^(]'
}

is_usable_python() {
    "$1" -c "import sys, venv, ensurepip; sys.exit(sys.version_info < (${MINIMUM_PYTHON/./, }))" 2>/dev/null
}

# Prints the first Python that can make virtual environments: $PYTHON, the distribution's, or one in PATH.
find_python() {
    local name
    for name in ${PYTHON:+"$PYTHON"} /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do
        if have "$name" && is_usable_python "$name"; then
            command -v "$name"
            return
        fi
    done
    return 1
}

# Sets `python`, installing one if need be.
prepare_python() {
    if python=$(find_python); then
        return
    fi
    [ -z "${PYTHON:-}" ] || die "PYTHON=$PYTHON: not a Python >= $MINIMUM_PYTHON with venv and ensurepip"
    install_packages python3 python3-venv
    if ! python=$(find_python) && is_installable python3.11-venv; then
        install_packages python3.11 python3.11-venv
    fi
    python=$(find_python) ||
        die "this release has no Python >= $MINIMUM_PYTHON ($(/usr/bin/python3 --version)): install one and name it, PYTHON=... $0"
}

# Prints one line that changes whenever an installation would: by interpreter, place, and contents of the named files.
# fingerprint PLACE FILE...
fingerprint() {
    local place=$1
    shift
    { "$python" -VV; echo "$place"; cat -- "$@"; } | sha256sum | cut -c 1-16
}

# Makes an environment with the package and its dependencies in the versions of constraints.txt.
# make_venv DIRECTORY CONSTRAINTS REQUIREMENT...
make_venv() {
    local venv=$1 constraints=$2
    shift 2
    # An aborted run left it unfinished, or its Python is gone: make it again.
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1 ||
        [ "$("$venv/bin/python" -VV)" != "$("$python" -VV)" ]; then
        rm -rf -- "$venv"
        "$python" -m venv "$venv" || die "$python -m venv $venv failed: see the lines above"
    fi
    local pip=("$venv/bin/python" -m pip --disable-pip-version-check --no-input)
    # Install the build backend in its pinned version, instead of any version in an isolated build.
    if ! "${pip[@]}" install -q -c "$constraints" setuptools ||
        ! "${pip[@]}" install -q --no-build-isolation -c "$constraints" "$@"; then
        die "pip install $* failed: see the lines above; check the network and pip's configuration"
    fi
}
