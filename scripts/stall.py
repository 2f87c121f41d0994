#!/usr/bin/env python3
"""Runs a command while threads of the processes below it, chosen at random, stand still for up to 4 s: a machine that is far busier
than any that tests meet, in which whatever hangs on a moment soon shows itself.

usage: stall.py SEED COMMAND [ARGUMENT...]   (exits as the command does)

A thread stands still by SCHED_IDLE beside loops that keep every processor busy (sched(7)): nothing about it changes but its speed, and
no signal is sent. The seed chooses threads and times; what they do meanwhile is the machine's, so a run is not repeated exactly.
"""
import os, random, signal, subprocess, sys, time

CHANCE, PAUSES_S, TURN_S = 0.06, (0.2, 0.5, 1, 2, 4), 0.15


def below(root):
    """The threads of all processes that a process started, and of what those started."""
    children = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                parent = stat.read().rsplit(")", 1)[1].split()[1]
        except (OSError, IndexError):  # it has ended
            continue
        children.setdefault(int(parent), []).append(int(pid))
    threads, left = [], list(children.get(root, []))
    while left:
        pid = left.pop()
        left += children.get(pid, [])
        try:
            threads += map(int, os.listdir(f"/proc/{pid}/task"))
        except OSError:
            pass
    return threads


def schedule(thread, policy):
    try:
        os.sched_setscheduler(thread, policy, os.sched_param(0))
    except OSError:  # it has ended, or is not ours
        pass


def is_idle(thread):
    try:
        return os.sched_getscheduler(thread) == os.SCHED_IDLE
    except OSError:
        return False


def main():
    chance = random.Random(int(sys.argv[1]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the loops end with this
    busy = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(os.cpu_count() + 1)]
    until = {}  # threads that stand still
    try:
        command = subprocess.Popen(sys.argv[2:])
        while command.poll() is None:
            now = time.monotonic()
            for thread in [thread for thread, end in until.items() if end <= now]:
                schedule(thread, os.SCHED_OTHER)
                del until[thread]
            for thread in below(command.pid):
                if thread in until:
                    continue
                if is_idle(thread):  # begun by one that stood still
                    until[thread] = now
                elif chance.random() < CHANCE:
                    schedule(thread, os.SCHED_IDLE)
                    until[thread] = now + chance.choice(PAUSES_S)
            time.sleep(TURN_S)
        return command.returncode
    finally:
        for loop in busy:
            loop.kill()


sys.exit(main())
