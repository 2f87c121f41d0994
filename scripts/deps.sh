#!/bin/bash
# Installs every Debian package that the build and the tests need. Does nothing when all are there.
set -euo pipefail

packages=(
    # kernels
    linux-source-6.12 build-essential bc bison flex libelf-dev libssl-dev xz-utils
    # static musl binaries; the -web packages are the way without rustup's musl target
    musl-tools rustc-web cargo-web rust-web-src libstd-rust-web-dev
    # image: SquashFS, verity (checked against veritysetup), boot loaders, ISO, volumes
    squashfs-tools cryptsetup-bin zstd cpio binutils systemd-boot-efi grub-pc-bin grub-common xorriso mtools dosfstools e2fsprogs
    # the Debian that boots beside NullBox in `make bench-boot`
    mmdebstrap fdisk
    # running and testing a node: QEMU, firmware, real OCI archives, networks and rules of the test's own
    qemu-system-x86 ovmf umoci skopeo swtpm iproute2 nftables dnsmasq-base bind9-dnsutils curl openssl python3 python3-venv file git
)

missing=()
for package in "${packages[@]}"; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

echo "deps: installing ${missing[*]}" >&2
root=()
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "deps: not root and no sudo; as root: apt-get install ${missing[*]}" >&2; exit 1; }
    root=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
"${root[@]}" apt-get update -q
if ! "${root[@]}" apt-get install -q -y --no-install-recommends "${missing[@]}"; then
    echo "deps: apt could not install all of: ${missing[*]}" >&2
    echo "deps: NullBox builds on Debian 12; check that its main and security repositories are enabled, then run this again" >&2
    exit 1
fi
