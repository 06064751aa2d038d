# What a root file system that debootstrap made gets from this machine: the checkout, and where packages come from.
# To be sourced with `checkout` (of the project), `root` (the new root) and `work` (a scratch directory) set.
# shellcheck shell=bash
# shellcheck disable=SC2154 # the three are the caller's

# Copies the checkout to its place below $root.
copy_checkout() {
    mkdir -p "$root/usr/src/cri-shim"
    (cd "$checkout" && tar --exclude=./.git --exclude=./.venv --exclude='./.*_cache' --exclude=__pycache__ -cf - .) |
        tar -xf - -C "$root/usr/src/cri-shim" --no-same-owner
}

# Where packages come from is the machine's affair: certificates, pip's configuration and the directories it names
# (an index in a directory called simple keeps its files beside that).
copy_machine_configuration() {
    local file directory
    cp -- /etc/resolv.conf "$root/etc/resolv.conf"
    for file in /etc/pip.conf /root/.config/pip/pip.conf /root/.pip/pip.conf; do
        if [ -e "$file" ]; then
            mkdir -p "$root$(dirname "$file")"
            cp -L -- "$file" "$root$file"
        fi
    done
    # As a site's own authority is made known: the root's ca-certificates package takes it into its bundle.
    if [ -e /etc/ssl/certs/ca-certificates.crt ]; then
        mkdir -p "$root/usr/local/share/ca-certificates"
        cp -L -- /etc/ssl/certs/ca-certificates.crt "$root/usr/local/share/ca-certificates/machine.crt"
    fi
    while read -r directory; do
        [ -d "$directory" ] || continue
        echo "$directory" >>"$work/package-directories"
        mkdir -p "$root$directory"
    done < <({ env | grep '^PIP_' || true; cat /etc/pip.conf /root/.config/pip/pip.conf /root/.pip/pip.conf 2>/dev/null || true; } |
        grep -o '\(file://\)\?/[A-Za-z0-9._/-]*' | sed 's|^file://||; s|/simple$||' | sort -u)
}
