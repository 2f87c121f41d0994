"""Attacks that an agent can make with all that its guest's user space gives it. Prints what came of each, as one JSON object."""

import ctypes
import errno
import json
import os
import shutil
import socket
import sys
import time

PLACE = "/tmp/hostile"


def attempt(call, *arguments):
    """The name of the error, or what was answered."""
    try:
        return repr(call(*arguments))
    except OSError as e:
        return errno.errorcode.get(e.errno, str(e.errno))


def flood(mib):
    """Output as fast as it goes, on both streams, some of it without line ends."""
    block = b"x" * 65535 + b"\n"
    for n in range(int(mib) * 16):
        os.write(1 + n % 2, block if n % 3 else block[:-1])
    return {"written_mib": int(mib)}


def fill():
    """All of the disk, then files in it."""
    written, why = 0, None
    block = b"\xaa" * (1 << 20)
    try:
        with open(PLACE, "wb", buffering=0) as f:
            while True:
                written += f.write(block)
    except OSError as e:
        why = errno.errorcode[e.errno]
    os.unlink(PLACE)
    return {"written_mib": written >> 20, "why": why}


def inodes():
    """As many files as can be."""
    os.makedirs(PLACE)
    made, why = 0, None
    deadline = time.monotonic() + 20
    try:
        while time.monotonic() < deadline:
            directory = f"{PLACE}/{made // 1000}"
            os.makedirs(directory, exist_ok=True)
            os.close(os.open(f"{directory}/{made}", os.O_CREAT | os.O_WRONLY))
            made += 1
    except OSError as e:
        why = errno.errorcode[e.errno]
    shutil.rmtree(PLACE)
    return {"made": made, "why": why}


def forks():
    """Processes that fork without end, until some forks were refused; what is left of them ends with the exec."""
    deadline = time.monotonic() + 90
    made, refused = 0, 0
    while refused < 20 and time.monotonic() < deadline:
        try:
            if os.fork() == 0:
                while time.monotonic() < deadline:
                    try:
                        os.fork()
                    except OSError:
                        time.sleep(0.05)
                os._exit(0)
            made += 1
        except OSError:
            refused += 1
            time.sleep(0.05)
    return {"made": made, "refused": refused}


def vsock():
    """There is no way to the host but the verifier's, and no device to ask."""
    found = {"device": attempt(os.open, "/dev/vsock", os.O_RDONLY)}
    found["socket"] = attempt(lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).connect((2, 1024)))
    found["datagram"] = attempt(lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_DGRAM).sendto(b"x", (2, 1025)))
    return found


def power():
    """reboot(2) in all its forms, and what else ends or changes a kernel."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(number, *arguments):
        if libc.syscall(number, *arguments) < 0:
            raise OSError(ctypes.get_errno(), "")
        return "done"

    magic = (0xFEE1DEAD, 672274793)
    found = {
        f"reboot {hex(command)}": attempt(call, 169, *magic, command, 0)
        for command in (0x01234567, 0xCDEF0123, 0x4321FEDC, 0x45584543, 0xD000FCE2, 0x89ABCDEF)
    }
    found |= {
        "init_module": attempt(call, 175, 0, 0, 0),
        "kexec_load": attempt(call, 246, 0, 0, 0, 0),
        "bpf": attempt(call, 321, 0, 0, 0),
        "iopl": attempt(call, 172, 3),
        "mount": attempt(call, 165, b"none", b"/tmp", b"tmpfs", 0, 0),
        "unshare": attempt(call, 272, 0x10000000),
        "ptrace": attempt(call, 101, 16, 1, 0, 0),
        "kill": attempt(os.kill, 1, 9),
        "sysrq": attempt(lambda: open("/proc/sysrq-trigger", "w").write("b")),
    }
    return found


def clock():
    """A clock that an agent cannot set, and one that it can wear out."""
    before = time.time()
    found = {"set": attempt(time.clock_settime, time.CLOCK_REALTIME, 0)}
    timers = [attempt(lambda: time.sleep(0.000001)) for _ in range(2000)]
    return found | {"slept": len(timers), "seconds": time.time() - before}


def trees():
    """Deep directories, links to everywhere, holes as large as can be, names as long as can be."""
    os.makedirs(PLACE)
    os.chdir(PLACE)
    depth, why = 0, None
    try:
        while depth < 3000:
            os.mkdir("d")
            os.chdir("d")
            depth += 1
    except OSError as e:
        why = errno.errorcode[e.errno]
    os.chdir(PLACE)
    links = 0
    for n in range(3000):
        os.symlink(["/", "..", "../" * 40 + "etc/passwd", "/proc/1/root", f"link{n + 1}"][n % 5], f"link{n}")
        links += 1
    holes = attempt(lambda: os.ftruncate(os.open("hole", os.O_CREAT | os.O_WRONLY), 1 << 43))
    attempt(lambda: os.ftruncate(os.open("hole2", os.O_CREAT | os.O_WRONLY), 1 << 40))
    open("n" * 255, "w").close()
    os.mkfifo("fifo")
    device = attempt(os.mknod, "device", 0o600 | 0o020000, os.makedev(1, 1))
    return {"depth": depth, "why": why, "links": links, "hole": holes, "device": device}


def main():
    name, arguments = sys.argv[1], sys.argv[2:]
    try:
        result = globals()[name](*arguments)
    except Exception as e:  # whatever it is, it is the finding
        result = {"error": type(e).__name__, "text": str(e)}
    print(json.dumps(result), flush=True)


main()
