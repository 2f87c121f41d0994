#!/usr/bin/env bash
# Runs two commands at once and waits for both; fails if one does.
#
#   scripts/beside.sh LOG SECOND... -- FIRST...
#
# SECOND has no `--` of its own. FIRST prints as it goes. SECOND prints into LOG, which is shown at the end. Where FIRST fails, SECOND is ended.
set -uo pipefail

log=$1 second=()
shift
while [[ $1 != -- ]]; do second+=("$1"); shift; done
shift
mkdir -p "$(dirname "$log")"
set -m # a process group of its own
"${second[@]}" > "$log" 2>&1 &
group=$!
set +m
trap 'kill -- -$group 2> /dev/null' EXIT
trap 'exit 143' TERM INT HUP
"$@" || { cat "$log"; echo "$* failed; ${second[*]}, which ran beside it, is ended" >&2; exit 1; }
kill -0 $group 2> /dev/null && echo "waiting for: ${second[*]} (log in $log)"
wait $group
status=$?
cat "$log"
((status == 0)) || { echo "${second[*]} failed" >&2; exit 1; }
trap - EXIT
