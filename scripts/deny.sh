#!/usr/bin/env bash
# Checks licences, bans and sources with cargo-deny, which it installs once into the cache.
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.20.2
root="${NULLBOX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nullbox}/tools/cargo-deny-$version"
if [ ! -x "$root/bin/cargo-deny" ]; then
    echo "licences: installing cargo-deny $version (once, into the cache)"
    # Unoptimized: built sooner, and what it checks here takes it seconds.
    CARGO_PROFILE_DEV_DEBUG=0 cargo install --debug --quiet --locked --root "$root" "cargo-deny@$version"
fi
"$root/bin/cargo-deny" --log-level warn check licenses bans sources
