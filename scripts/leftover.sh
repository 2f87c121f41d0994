#!/usr/bin/env bash
# Runs a command and fails if a process of it is left: it would hold what the command prints to, and a reader would wait for ever.
#
#   scripts/leftover.sh COMMAND...
#
# A process is known by a mark in its environment (proc_pid_environ(5)). What is left is named and killed.
set -uo pipefail

export NULLBOX_RUN=$$-$(date +%s)
"$@"
status=$?
for dir in /proc/[0-9]*; do
    pid=${dir#/proc/}
    [[ $pid != $$ ]] && grep -qszFx "NULLBOX_RUN=$NULLBOX_RUN" "$dir/environ" || continue
    line=$(tr '\0' ' ' 2>/dev/null < "$dir/cmdline")
    [[ -n $line ]] || continue # it has just ended
    echo "leftover: process $pid outlives the run: $line" >&2
    kill -KILL "$pid"
    ((status)) || status=1
done
exit "$status"
