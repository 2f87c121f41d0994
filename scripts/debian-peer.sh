#!/bin/bash
# Makes the disk that `make bench-boot` boots beside NullBox, and prints its path: Debian 12 with systemd and the cloud kernel.
#
#   scripts/debian-peer.sh            as root: the file system holds root's files
#
# Packages come from the machine's own, signed apt sources (Debian 12). The disk is kept in the cache, by this script and the
# packages' names and digests. docs/benchmarks.md says what was left out, and that all of it makes the peer faster.
set -euo pipefail
shopt -s inherit_errexit
export LC_ALL=C TZ=UTC

cache=${NULLBOX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nullbox}/debian-peer
packages=(systemd systemd-sysv udev linux-image-cloud-amd64)
stub=/usr/lib/systemd/boot/efi/linuxx64.efi.stub
# As NullBox's own: to the same consoles, and no more talkative. `rw` and `fsck.mode=skip` save a remount and a check.
command_line='root=/dev/vda2 rw fsck.mode=skip console=tty0 console=ttyS0,115200 quiet loglevel=4 panic=5'
esp_mib=128
root_mib=1024

say() { printf 'debian-peer: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

[ "$(id -u)" = 0 ] || die "run as root, or through \`make bench-boot\`"
for tool in mmdebstrap sfdisk mkfs.ext4 mkfs.vfat mcopy objcopy; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null || die "$tool is missing: run \`make deps\`"
done
export PATH=$PATH:/usr/sbin:/sbin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Debian's own archives among the machine's apt sources, as one-line entries.
sources() {
    local sources
    sources=$(apt-get indextargets --format 'deb $(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian' | sort -u)
    grep -q ' bookworm main$' <<<"$sources" || die "no apt source of Debian 12 (bookworm main): add one, run apt-get update as root"
    echo "$sources"
}

# The packages that an empty system would get, with their digests.
resolve() {
    local list
    mkdir -p "$work/archives/partial"
    : >"$work/status"
    list=$(apt-get -qq -y --print-uris -o Dir::State::status="$work/status" -o Dir::Cache::archives="$work/archives" \
        -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o Debug::NoLocking=1 -o APT::Install-Recommends=false \
        install "${packages[@]}" '?or(?essential,?priority(required))') || die "apt cannot resolve ${packages[*]}: run apt-get update as root, on Debian 12"
    awk '{print $2, $4}' <<<"$list" | sort
}

# The reporter starts when multi-user.target has been reached and prints systemd's own account of the start on the serial line.
reporter() {
    mkdir -p "$1/etc/systemd/system/multi-user.target.wants"
    cat >"$1/usr/local/sbin/boot-report" <<'END'
#!/bin/sh
state=$(systemctl is-system-running --wait)
systemd-analyze time
echo "$state $(uname -r) boot-report"
END
    chmod 755 "$1/usr/local/sbin/boot-report"
    cat >"$1/etc/systemd/system/boot-report.service" <<'END'
[Unit]
Description=Account of the start, on the serial line
After=multi-user.target
[Service]
ExecStart=/usr/local/sbin/boot-report
StandardOutput=tty
TTYPath=/dev/ttyS0
END
    ln -s ../boot-report.service "$1/etc/systemd/system/multi-user.target.wants/"
}

# What a first boot would do once is done already, and nobody waits for a login.
settle() {
    local root=$1
    echo peer >"$root/etc/hostname"
    echo 6e756c6c626f78706565720000000001 >"$root/etc/machine-id"
    touch "$root/etc/.updated" "$root/var/.updated"
    mkdir -p "$root/var/log/journal/$(cat "$root/etc/machine-id")"
    ln -sf /dev/null "$root/etc/systemd/system/getty.target"
    ln -sf /lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
    reporter "$root"
}

# disk ROOT OUT: GPT with an EFI system partition (the stub with kernel, initramfs and command line inside, as on NullBox's
# medium) and an ext4 root.
disk() {
    local root=$1 out=$2
    printf '%s' "$command_line" >"$work/cmdline"
    objcopy --add-section .osrel="$root/usr/lib/os-release" --change-section-vma .osrel=0x20000 \
        --add-section .cmdline="$work/cmdline" --change-section-vma .cmdline=0x30000 \
        --add-section .initrd="$(echo "$root"/boot/initrd.img-*)" --change-section-vma .initrd=0x2000000 \
        --add-section .linux="$(echo "$root"/boot/vmlinuz-*)" --change-section-vma .linux=0x4000000 \
        "$stub" "$work/peer.efi"
    mkfs.vfat -n PEER-ESP -C "$work/esp" $((esp_mib * 1024)) >/dev/null
    mmd -i "$work/esp" ::/EFI ::/EFI/BOOT
    mcopy -i "$work/esp" "$work/peer.efi" ::/EFI/BOOT/BOOTX64.EFI
    # Written in full now, not by the kernel behind the boot's back.
    mkfs.ext4 -q -L peer -E lazy_itable_init=0,lazy_journal_init=0 -d "$root" "$work/ext4" ${root_mib}M >/dev/null
    truncate -s $((esp_mib + root_mib + 2))M "$out"
    sfdisk -q "$out" <<END
label: gpt
start=1MiB, size=${esp_mib}MiB, type=uefi
start=$((esp_mib + 1))MiB, size=${root_mib}MiB, type=linux
END
    dd if="$work/esp" of="$out" bs=1M seek=1 conv=notrunc,sparse status=none
    dd if="$work/ext4" of="$out" bs=1M seek=$((esp_mib + 1)) conv=notrunc,sparse status=none
}

main() {
    local key image
    sources >"$work/sources.list"
    resolve >"$work/list"
    key=$(cat "$0" "$work/list" | sha256sum | cut -c1-32)
    image=$cache/$key.img
    if [ ! -e "$image" ]; then
        say "making Debian 12 from $(wc -l <"$work/list") packages (a few minutes; log: $cache/log)"
        mkdir -p "$cache"
        mmdebstrap --mode=root --variant=minbase --include="$(IFS=,; echo "${packages[*]}")" \
            bookworm "$work/root" "$work/sources.list" >"$cache/log" 2>&1 || { tail -20 "$cache/log" >&2; die "mmdebstrap failed"; }
        settle "$work/root"
        disk "$work/root" "$image.$$"
        mv "$image.$$" "$image"
        find "$cache" -name '*.img' ! -path "$image" -delete # of older packages
    fi
    echo "$image"
}

main "$@"
