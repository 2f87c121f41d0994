"""Tries one thing from inside a guest and prints what came of it, as one JSON object."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import told

TIMEOUT = 20


def tcp(host, port, family=socket.AF_INET):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(TIMEOUT)
        s.connect((host, int(port)))
        return {"connected": s.getpeername()[0]}


def tcp6(host, port):
    return tcp(host, port, socket.AF_INET6)


def udp(host, port, text="x"):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(5)
        s.connect((host, int(port)))
        s.send(text.encode())
        return {"answer": s.recv(512).hex()}


def resolve(name):
    return {"addresses": sorted({a[4][0] for a in socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)})}


def http(host, port, header, path="/"):
    with socket.create_connection((host, int(port)), timeout=TIMEOUT) as s:
        s.settimeout(TIMEOUT)
        s.sendall(f"GET {path} HTTP/1.1\r\nHost: {header}\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while chunk := s.recv(4096):
            data += chunk
        return {"response": data.decode(errors="replace")}


def memory(*requests):
    answers = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.settimeout(TIMEOUT)
        s.connect("/run/nullbox/memory.sock")
        lines = s.makefile("rw")
        for number, request in enumerate(requests):
            method, params = request.split(" ", 1)
            lines.write(json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": json.loads(params)}) + "\n")
            lines.flush()
            answers.append(json.loads(lines.readline()))
    return {"answers": answers}


def write(path):
    with open(path, "w") as f:
        f.write("written")
    return {"written": path}


def read(path):
    with open(path) as f:
        return {"text": f.read(65536)}


def run(*command):
    return {"status": subprocess.run(command, timeout=TIMEOUT, capture_output=True).returncode}


def vsock(cid, port):
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as s:
        s.settimeout(TIMEOUT)
        s.connect((int(cid), int(port)))
        return {"connected": [cid, port]}


def hold(host, port, header):
    """Keeps a connection open, says so, and tells when it is cut."""
    with socket.create_connection((host, int(port)), timeout=TIMEOUT) as s:
        s.settimeout(120)
        s.sendall(f"GET /slow HTTP/1.1\r\nHost: {header}\r\n\r\n".encode())
        print(json.dumps({"held": True}), flush=True)
        started = time.time()
        try:
            data = s.recv(1)
            return {"cut": "closed" if not data else "data", "after": time.time() - started}
        except OSError as e:
            return {"cut": type(e).__name__, "after": time.time() - started}


def whoami():
    status = dict(l.split(":\t", 1) for l in open("/proc/self/status").read().splitlines() if ":\t" in l)
    return {
        "uid": os.getuid(),
        "gid": os.getgid(),
        "groups": os.getgroups(),
        "caps": [status[c] for c in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
        "no_new_privs": status["NoNewPrivs"],
        "seccomp": status["Seccomp"],
        "env": dict(os.environ),
        "interfaces": sorted(name for _, name in socket.if_nameindex()),
        "block_devices": [d for d in sorted(os.listdir("/dev")) if d.startswith("vd")],
    }


def bomb():
    """Makes tasks until it may not: threads, so that it is not memory that ends first."""
    threading.stack_size(64 * 1024)
    over = threading.Event()
    tasks = 0
    try:
        while tasks < 100000:
            threading.Thread(target=over.wait, daemon=True).start()
            tasks += 1
    except RuntimeError as e:
        return {"tasks": tasks, "refused": str(e)}
    finally:
        over.set()
    return {"tasks": tasks}


def eat():
    """Takes memory until it may not."""
    eaten = []
    while len(eaten) < 100000:
        eaten.append(bytearray(b"x" * (1 << 20)))
    return {"eaten": len(eaten)}


told.main(globals())
