#!/bin/bash
# Makes the disk that `make bench-cage` gives a node, and prints its path: this machine's own QEMU with the libraries and the firmware
# that its microvm machine needs. A node has no dynamic linker, so that comes along as well.
set -euo pipefail
shopt -s inherit_errexit
export PATH=$PATH:/usr/sbin:/sbin

cache=${NULLBOX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nullbox}/microvm
die() { printf 'microvm-disk: %s\n' "$*" >&2; exit 1; }

qemu=$(command -v qemu-system-x86_64) || die "qemu-system-x86_64 is missing: run \`make deps\`"
firmware=/usr/share/qemu/qboot.rom
[ -e "$firmware" ] || die "$firmware is missing: run \`make deps\`"
command -v mkfs.ext4 >/dev/null || die "mkfs.ext4 is missing: run \`make deps\`"

key=$({ sha256sum "$qemu" "$firmware"; sha256sum "$0" | cut -c1-64; } | sha256sum | cut -c1-32)
out=$cache/$key.img
if [ ! -e "$out" ]; then
    mkdir -p "$cache"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work/disk/lib" "$work/disk/share"
    cp -L "$qemu" "$work/disk/qemu"
    cp -L "$firmware" "$work/disk/share/qboot.rom"
    cp -L "$firmware" "$work/disk/share/bios-microvm.bin"
    # `name => /path (address)`, and the dynamic linker by its path alone.
    ldd "$qemu" | awk '$2 == "=>" {print $3}' | xargs -I{} cp -L {} "$work/disk/lib/"
    cp -L "$(ldd "$qemu" | awk '$1 ~ /^\/.*ld-linux/ {print $1}')" "$work/disk/ld.so"
    mib=$(($(du -sm "$work/disk" | cut -f1) + 24))
    truncate -s "${mib}M" "$work/disk.img"
    mkfs.ext4 -q -O ^has_journal -d "$work/disk" "$work/disk.img"
    mv "$work/disk.img" "$out"
fi
echo "$out"
