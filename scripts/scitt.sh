#!/bin/bash
# Makes a Python with scitt-cose, a verifier of COSE receipts and Merkle proofs that nobody here wrote, and securesystemslib, one of DSSE
# envelopes, and prints its path. The ledger's tests ask them what they think of ours (NULLBOX_SCITT_PYTHON).
#
# It is kept in the cache, by the content of this script and of the list of what is installed.
set -euo pipefail
shopt -s inherit_errexit

cache=${NULLBOX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nullbox}/scitt
requirements=$(dirname "$0")/scitt-requirements.txt
die() { printf 'scitt: %s\n' "$*" >&2; exit 1; }

key=$(cat "$0" "$requirements" | sha256sum | cut -c1-32)
out=$cache/$key
if [ ! -e "$out/done" ]; then
    /usr/bin/python3 -c 'import ensurepip, venv' 2>/dev/null || die "python3-venv is missing: run \`make deps\`"
    rm -rf "$cache" # older ones, and what was begun
    mkdir -p "$cache"
    /usr/bin/python3 -m venv "$out"
    "$out/bin/pip" install --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
        --requirement "$requirements" >&2 || die "pip could not install $requirements: it needs a package index once"
    "$out/bin/python" -c 'import scitt_cose.receipt, securesystemslib.dsse' || die "what was installed does not run here"
    touch "$out/done"
fi
echo "$out/bin/python"
