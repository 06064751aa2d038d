# What the commands that run tests need of a machine, beside what the daemon needs: Debian packages, and .venv in the
# checkout with the versions of constraints.txt. To be sourced with `checkout` set.
# shellcheck shell=bash

# shellcheck source=deploy/prepare.sh
. "$checkout/deploy/prepare.sh"

readonly VENV=$checkout/.venv

# prepare_tests: from the checkout's directory; afterwards the environment's programs come first on PATH.
prepare_tests() {
    local packages print
    read -ra packages <<<"$({ missing_runtime_packages; missing_test_packages; } | tr '\n' ' ')"
    install_packages "${packages[@]}"
    prepare_python
    print=$(fingerprint "$VENV" pyproject.toml constraints.txt)
    if [ "$(cat "$VENV/fingerprint" 2>/dev/null)" != "$print" ] || ! "$VENV/bin/pytest" --version >/dev/null 2>&1; then
        say "installing the test environment into .venv"
        rm -f -- "$VENV/fingerprint"
        make_venv "$VENV" constraints.txt -e ".[dev]"
        echo "$print" >"$VENV/fingerprint"
    fi
    export PATH="$VENV/bin:$PATH"
}

missing_test_packages() {
    have nft || echo nftables
    have crun || echo crun
    have docker-registry || echo docker-registry
    have setpriv || echo util-linux
    have containerd-shim-runc-v2 || echo containerd
}
