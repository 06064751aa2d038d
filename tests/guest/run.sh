#!/usr/bin/env bash
# What this machine can't show, in a virtual machine that is emulated in software: systemd, cgroup v2, AppArmor.
#
#   sudo tests/guest/run.sh [COMMAND...]
#
# Makes a Debian 13 root file system with debootstrap (kept in the user's cache), copies this checkout and a virtual
# environment into it, and boots it with qemu. COMMAND runs there as root, in the checkout, with the environment's
# programs first on PATH; default: tests/guest/inside.sh. Its output is shown as it comes, its status is this script's.
# The guest has no network. Some 20 minutes with the default on 2 idle cores, 35 on busy ones; 3 more for a new root.
#
#   GUEST_SUITE       Debian release, default trixie
#   GUEST_MIRROR      package mirror
#   GUEST_PROGRAMS    a directory; its files are there in /usr/local/bin, such as critest
#   GUEST_ACCEL       qemu's accelerator, default tcg,thread=single, which needs nothing of the machine; kvm is quick
#   GUEST_TIMEOUT_S   when it is killed, default 7200
set -euo pipefail

checkout=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
# shellcheck source=deploy/prepare.sh
. "$checkout/deploy/prepare.sh"
# shellcheck source=tests/root_directory.sh
. "$checkout/tests/root_directory.sh"

readonly SUITE=${GUEST_SUITE:-trixie}
readonly TIMEOUT_S=${GUEST_TIMEOUT_S:-7200}
readonly DISK=12G MEMORY=4G
readonly CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/cri-shim/guest
readonly PACKAGES=(
    linux-image-cloud-amd64 systemd-sysv dbus apparmor kmod udev
    runc crun conmon containernetworking-plugins catatonit busybox-static
    iptables nftables iproute2 libarchive13t64 ca-certificates python3 python3-venv procps util-linux e2fsprogs
    sudo # critest loads AppArmor profiles with it
)

main() {
    require_root
    prepare_host
    work=$(mktemp -d /var/tmp/guest.XXXXXX)
    root=$work/root
    trap 'rm -rf --one-file-system -- "$work"' EXIT
    make_root
    copy_checkout
    copy_machine_configuration
    say "installing the test environment"
    unshare --mount --propagation private --pid --fork --kill-child "$0" --make-environment "$root" \
        >"$work/environment.log" 2>&1 ||
        { tail -n 20 "$work/environment.log" >&2; die "installing the test environment failed"; }
    copy_programs
    write_unit "$@"
    say "making the disk"
    mke2fs -q -t ext4 -L root -d "$root" "$work/disk" "$DISK"
    cp -L -- "$root/vmlinuz" "$work/kernel"
    cp -L -- "$root/initrd.img" "$work/initrd"
    boot
}

prepare_host() {
    local packages=()
    have debootstrap || packages+=(debootstrap)
    have mke2fs || packages+=(e2fsprogs)
    have qemu-system-x86_64 || packages+=(qemu-system-x86)
    install_packages "${packages[@]}"
}

make_root() {
    local archive
    archive=$CACHE/$SUITE-$(printf '%s\n' "${PACKAGES[@]}" | sha256sum | cut -c 1-12).tar
    mkdir -p "$root"
    if [ ! -e "$archive" ]; then
        say "debootstrap $SUITE"
        debootstrap --variant=minbase --include="$(IFS=,; echo "${PACKAGES[*]}")" "$SUITE" "$root" \
            ${GUEST_MIRROR:+"$GUEST_MIRROR"} >"$work/debootstrap.log" ||
            { tail -n 20 "$work/debootstrap.log" >&2; die "debootstrap failed"; }
        mkdir -p "$CACHE"
        tar --xattrs -C "$root" -cf "$work/root.tar" .
        mv -- "$work/root.tar" "$archive"
    else
        tar --xattrs -C "$root" -xf "$archive"
    fi
}

# The half that runs in a mount and a PID namespace of its own: only pip runs there, nothing of the project's.
make_environment() {
    root=$1
    local directory
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    for directory in null urandom; do
        mount --bind "/dev/$directory" "$root/dev/$directory"
    done
    if [ -e "$root/../package-directories" ]; then
        while read -r directory; do
            mount --bind -o ro "$directory" "$root$directory"
        done <"$root/../package-directories"
    fi
    # shellcheck disable=SC2016 # the inner shell's
    chroot "$root" bash -euc '
        update-ca-certificates >/dev/null 2>&1
        cd /usr/src/cri-shim
        . deploy/prepare.sh
        prepare_python
        make_venv /opt/cri-shim-tests constraints.txt -e ".[dev]"
        # Every start of Python is slow enough there.
        /opt/cri-shim-tests/bin/python -m compileall -q cri_shim tests'
}

copy_programs() {
    [ -z "${GUEST_PROGRAMS:-}" ] || cp -L -- "$GUEST_PROGRAMS"/* "$root/usr/local/bin/"
    # What was downloaded for the images of critest comes along: the guest has no network.
    local downloads=${XDG_CACHE_HOME:-$HOME/.cache}/cri-shim/conformance
    if [ -d "$downloads" ]; then
        mkdir -p "$root/root/.cache/cri-shim"
        cp -r -- "$downloads" "$root/root/.cache/cri-shim/"
    fi
}

# write_unit COMMAND...
write_unit() {
    [ $# -gt 0 ] || set -- tests/guest/inside.sh
    printf '%q ' "$@" >"$root/usr/src/cri-shim-command"
    cat >"$root/usr/src/cri-shim-guest" <<'GUEST'
#!/bin/bash
export HOME=/root PATH=/opt/cri-shim-tests/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
cd /usr/src/cri-shim
status=0
eval "$(cat ../cri-shim-command)" >/dev/hvc0 2>&1 || status=$?
echo "guest: the command ended with status $status" >/dev/hvc0
sleep 1
systemctl poweroff --force
GUEST
    chmod 755 "$root/usr/src/cri-shim-guest"
    cat >"$root/etc/systemd/system/cri-shim-guest.service" <<'UNIT'
[Unit]
After=basic.target dev-hvc0.device
Wants=dev-hvc0.device

[Service]
ExecStart=/usr/src/cri-shim-guest
Delegate=no
TasksMax=infinity
LimitNOFILE=65536
UNIT
    mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
    ln -s ../cri-shim-guest.service "$root/etc/systemd/system/multi-user.target.wants/"
    ln -sf /dev/null "$root/etc/systemd/system/serial-getty@hvc0.service"
    echo '/dev/vda / ext4 defaults 0 1' >"$root/etc/fstab"
    echo guest >"$root/etc/hostname"
    # sudo complains of a machine that can't resolve its own name, and critest takes any complaint for a failure.
    echo '127.0.1.1 guest' >>"$root/etc/hosts"
    printf '%s\n' overlay br_netfilter >"$root/etc/modules-load.d/pods.conf"
}

# With qemu 7.2, emulated CPUs on threads of their own don't last: the guest's kernel panicked in its allocator after ten
# minutes, why is not known. With cx16 it did so at once: the flags after CMPXCHG16B were not what they should be.
# la57 and the mitigations of processors' faults cost an emulated one a tenth of its time, for nothing.
# The console (kernel, systemd) goes to a file that is shown if the guest dies; the command's output has a line of its own.
boot() {
    local status
    say "booting"
    timeout --foreground --kill-after=10 "$TIMEOUT_S" qemu-system-x86_64 \
        -accel "${GUEST_ACCEL:-tcg,thread=single}" -cpu max,-cx16,-la57 -smp 2 -m "$MEMORY" -nodefaults -display none -no-reboot \
        -kernel "$work/kernel" -initrd "$work/initrd" \
        -append "root=/dev/vda rw console=ttyS0 quiet panic=-1 apparmor=1 security=apparmor mitigations=off systemd.show_status=no" \
        -drive "file=$work/disk,format=raw,if=virtio,cache=unsafe" \
        -serial "file:$work/console" -nic none -device virtio-serial-pci \
        -chardev stdio,id=output,signal=off -device virtconsole,chardev=output </dev/null |
        sed -u 's/\r//g' | tee "$work/output" || true
    status=$(sed -n 's/^guest: the command ended with status //p' "$work/output" | tail -n 1)
    if [ -z "$status" ]; then
        tail -n 40 "$work/console" >&2 || true
        die "the guest did not finish: above is the end of its console"
    fi
    exit "$status"
}

if [ "${1:-}" = --make-environment ]; then
    make_environment "$2"
else
    main "$@"
fi
