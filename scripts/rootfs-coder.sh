#!/bin/bash
# Makes an OCI archive with the coding agent (coder/, as /usr/bin/coder) on Debian's Python 3:
#
#   scripts/rootfs-coder.sh OUT.tar [--add DIR]...
#
# The agent is a static binary and needs nothing of the image; Python is there for what the agent works on, and each --add is one more
# layer (scripts/rootfs-python.sh). For another language lay the binary into an image of your own (docs/coder.md).
set -euo pipefail
shopt -s inherit_errexit
tree=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

[ $# -gt 0 ] && [[ $1 != -* ]] || { echo "usage: rootfs-coder.sh OUT.tar [--add DIR]..." >&2; exit 1; }
out=$1
shift
node=${CARGO_TARGET_DIR:-$tree/target}/node
(
    cd "$tree"
    env=$(scripts/musl-env.sh)
    eval "$env"
    "$CARGO" build --quiet --release --locked --target x86_64-unknown-linux-musl --target-dir "$node" --package coder >&2
)
install -D "$node/x86_64-unknown-linux-musl/release/coder" "$work/coder/usr/bin/coder"
"$tree/scripts/rootfs-python.sh" "$out" --add "$work/coder" "$@"
