#!/bin/bash
# Builds the fuzz targets with the nightly compiler, coverage and the address sanitizer, and runs each.
#
#   scripts/fuzz.sh [SECONDS [TARGET...]]     60 seconds of each target: dns, guest, hello, http, ledger, manifest, model, oci, reflect, tools, usage
#
# New inputs are kept outside the tree (NULLBOX_CACHE/fuzz/TARGET) and used again; a crash is in fuzz/artifacts/TARGET and ends the
# run with an error. The seeds are in fuzz/corpus/TARGET.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
targets=("${@:2}")
[ ${#targets[@]} -gt 0 ] || targets=(dns guest hello http ledger manifest model oci reflect tools usage)
cache=${NULLBOX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nullbox}/fuzz
host=$(rustc +nightly -vV | sed -n 's/^host: //p')

# What cargo-fuzz would set: edge coverage with the values of comparisons, and the address sanitizer. A target of its own keeps build
# scripts free of it.
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
 -Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address -Ccodegen-units=1"
build=${CARGO_TARGET_DIR:-target}/fuzz
cargo +nightly build --quiet --release --locked --manifest-path fuzz/Cargo.toml --target "$host" --target-dir "$build"

for target in "${targets[@]}"; do
	mkdir -p "$cache/$target" "fuzz/artifacts/$target"
	echo "fuzz: $target, $seconds s"
	"$build/$host/release/$target" -max_total_time="$seconds" -timeout=120 -rss_limit_mb=4096 -max_len=65536 -print_final_stats=1 \
		-verbosity="${VERBOSITY:-0}" -artifact_prefix="fuzz/artifacts/$target/" "$cache/$target" "fuzz/corpus/$target"
done
