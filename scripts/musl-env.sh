#!/bin/bash
# Prints the `export` lines that make cargo build static musl binaries; prepares the toolchain when it is not there yet.
#
#   eval "$(scripts/musl-env.sh)"
#   "$CARGO" build --release --target x86_64-unknown-linux-musl -p nulld
#
# rustup's own musl target where it is or can be installed; otherwise Debian's rustc-web with std built from
# rust-web-src into a sysroot of its own, once, in the cache. NULLBOX_TOOLCHAIN=rustup|debian forces one of them.
# Nothing but the export lines goes to stdout.
set -euo pipefail
shopt -s inherit_errexit

target=x86_64-unknown-linux-musl
tree=$(cd "$(dirname "$0")/.." && pwd)
cache=${NULLBOX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nullbox}
want=${NULLBOX_TOOLCHAIN:-any}
say() { printf 'musl-env: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

rustup_has_target() { command -v rustup >/dev/null && (cd "$tree" && rustup target list --installed 2>/dev/null) | grep -qx "$target"; }

# Std is a function of these; a change of any of them makes another sysroot.
sysroot_key() {
    { "$1" -vV; [ "$2" = rustup ] || dpkg-query -W -f '${Package} ${Version}\n' rust-web-src musl-dev gcc-12 2>/dev/null || true
      sed -n '/^build_unwinder()/,/^debian_ready()/p' "$0"; } | sha256sum | cut -c1-16
}

# Debian's musl is linked with gcc's unwinder, which wants two symbols that musl 1.2.3 lacks:
# _dl_find_object (-1: "use dl_iterate_phdr") and statx.
build_unwinder() {
    local dir=$1 eh
    cat >"$dir/shim.c" <<'C'
#include <unistd.h>
#include <sys/syscall.h>
struct statx;
int _dl_find_object(void *pc, void *result) { (void)pc; (void)result; return -1; }
int statx(int fd, const char *path, int flags, unsigned mask, struct statx *out) {
    return (int)syscall(SYS_statx, fd, path, flags, mask, out);
}
C
    (cd "$dir" && musl-gcc -O2 -c -o shim.o shim.c)
    eh=$(gcc -print-file-name=libgcc_eh.a)
    cp "$eh" "$dir/libunwind.a"
    ar rsD "$dir/libunwind.a" "$dir/shim.o" 2>/dev/null
    rm "$dir/shim.c" "$dir/shim.o"
}

# build_sysroot DIR CARGO RUSTC KIND: std for size, once. Bitcode lies beside the machine code, so that LTO reaches into
# std. No backtraces: our binaries are stripped and abort (this alone saves 290 KB in each of them).
build_sysroot() {
    local out=$1 cargo=$2 rustc=$3 kind=$4 tmp=$1.tmp.$$ lib default flags
    rm -rf "$tmp"
    lib=$tmp/lib/rustlib/$target/lib
    default=$("$rustc" --print sysroot)
    mkdir -p "$lib" "$tmp/native" "$tmp/seed/src" "$tmp/seed/.cargo"
    flags=(-Crelocation-model=static -Ctarget-feature=+crt-static -Cembed-bitcode=yes -Cpanic=abort -Cforce-unwind-tables=no)
    if [ "$kind" = debian ]; then
        build_unwinder "$tmp/native"
        flags+=(-Clink-self-contained=no "-Lnative=$tmp/native" -Clinker=musl-gcc)
    fi
    printf '[package]\nname = "seed"\nversion = "0.0.0"\nedition = "2024"\n[profile.release]\nopt-level = "s"\ncodegen-units = 1\npanic = "abort"\n[workspace]\n' >"$tmp/seed/Cargo.toml"
    echo 'fn main() {}' >"$tmp/seed/src/main.rs"
    # std's own dependencies come with Debian's source; rustup's names them in its Cargo.lock.
    [ "$kind" = rustup ] || printf '[source.crates-io]\nreplace-with = "vendored"\n[source.vendored]\ndirectory = "%s"\n' \
        "$default/lib/rustlib/src/rust/library/vendor" >"$tmp/seed/.cargo/config.toml"
    (cd "$tmp/seed" && env -u CARGO_TARGET_DIR RUSTC="$rustc" RUSTC_BOOTSTRAP=1 \
        CC_x86_64_unknown_linux_musl=musl-gcc CARGO_ENCODED_RUSTFLAGS="$(IFS=$'\x1f'; echo "${flags[*]}")" \
        "$cargo" build --release --target "$target" --target-dir "$tmp/seed/target" \
            -Zbuild-std=std,panic_abort -Zbuild-std-features=optimize_for_size >&2)
    cp "$tmp/seed/target/$target/release/deps/"*.rlib "$lib/"
    rm -f "$lib"/libseed-*
    [ "$kind" = debian ] || cp -r "$default/lib/rustlib/$target/lib/self-contained" "$lib/"
    rm -rf "$tmp/seed"
    mv -T "$tmp" "$out" || { rm -rf "$tmp"; [ -d "$out" ]; }
}

# sysroot CARGO RUSTC KIND: the directory, built when it is not there.
sysroot() {
    local root
    root=$cache/toolchain/$(sysroot_key "$2" "$3")
    mkdir -p "$cache/toolchain"
    if [ ! -d "$root" ]; then
        exec 9>"$cache/toolchain/lock"
        flock 9
        if [ ! -d "$root" ]; then
            say "building std for $target ($3; once, about a minute)"
            build_sysroot "$root" "$@"
        fi
    fi
    echo "$root"
}

debian_ready() {
    local missing=()
    [ -x /usr/bin/rustc ] && [ -x /usr/bin/cargo ] || missing+=(rustc-web cargo-web libstd-rust-web-dev)
    compgen -G '/usr/src/rustc-*/library/std/Cargo.toml' >/dev/null || missing+=(rust-web-src)
    command -v musl-gcc >/dev/null || missing+=(musl-tools)
    [ ${#missing[@]} = 0 ] || die "no rustup musl target and no Debian one: run scripts/deps.sh (missing: ${missing[*]})"
}

# No path of the build machine in a binary.
remap="--remap-path-prefix=$tree=/nullbox --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
# Nothing unwinds: our binaries abort, and what only unwinding reads is a fifth of them.
common="-C relocation-model=static -C target-feature=+crt-static -C force-unwind-tables=no $remap"

print_env() {
    echo "export CARGO=$1"
    echo "export RUSTC=$2"
    echo "export CC_x86_64_unknown_linux_musl=musl-gcc"
    echo "export CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_RUSTFLAGS='$3 $common'"
}

use_rustup() {
    local rustc cargo root
    rustc=$(cd "$tree" && rustup which rustc)
    cargo=$(cd "$tree" && rustup which cargo)
    if [ -d "$("$rustc" --print sysroot)/lib/rustlib/src/rust/library/std" ] || (cd "$tree" && timeout 120 rustup component add rust-src >&2); then
        root=$(sysroot "$cargo" "$rustc" rustup)
        print_env "$cargo" "$rustc" "--sysroot $root"
    else
        say "no rust-src: binaries carry rustup's std and are about 290 KB larger each"
        print_env "$cargo" "$rustc" ""
    fi
}

use_debian() {
    local root
    debian_ready
    root=$(sysroot /usr/bin/cargo /usr/bin/rustc debian)
    print_env /usr/bin/cargo /usr/bin/rustc "--sysroot $root -C link-self-contained=no -C linker=musl-gcc -L native=$root/native"
}

rustup_add_target() { command -v rustup >/dev/null && (cd "$tree" && timeout 120 rustup target add "$target" >&2); }

case $want in
    rustup) rustup_has_target || rustup_add_target || die "rustup cannot add $target; unset NULLBOX_TOOLCHAIN or run scripts/deps.sh"; use_rustup ;;
    debian) use_debian ;;
    any)
        if rustup_has_target || rustup_add_target; then use_rustup
        else say "rustup's $target cannot be had; using Debian's rustc-web"; use_debian
        fi ;;
    *) die "NULLBOX_TOOLCHAIN is '$want'; it can be rustup or debian" ;;
esac
