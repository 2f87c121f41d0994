"""The demo's researcher: does what its manifest grants, then tries what it does not, and reports what really happened."""

import os
import socket
import subprocess
import urllib.error
import urllib.request

from checks import LIMIT_SECONDS, Memory, NoSuchName, Refusal, allowed, connect, refused, report, resolve, say, stay

OUTPUT = "/data/research/output/report.txt"


def fetch(url, headers=None):
    request = urllib.request.Request(url, headers=headers or {})
    with urllib.request.urlopen(request, timeout=LIMIT_SECONDS) as answer:
        body = answer.read(65536).decode(errors="replace")
        return f"HTTP {answer.status}, {len(body)} bytes: {body.strip()[:60]!r}", body


def udp(host, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(5)
        s.connect((host, port))
        s.send(b"x")
        return s.recv(512)


def read(path):
    with open(path) as f:
        text = f.read(4096)
    return repr(text.strip()), text


def write(path, text, mode="w"):
    with open(path, mode) as f:
        f.write(text)
    return f"{len(text)} characters", text


def files():
    say("files")
    allowed("read  /data/research/question.txt", lambda: read("/data/research/question.txt"))
    allowed(f"write {OUTPUT}", lambda: write(OUTPUT, "found: one page, and many closed doors\n"))
    allowed(f"read  {OUTPUT}", lambda: read(OUTPUT))
    refused("read  /data/secret.txt", lambda: read("/data/secret.txt")[0], PermissionError)
    refused("write /data/secret.txt", lambda: write("/data/secret.txt", "mine\n")[0], PermissionError)
    refused("append to /etc/passwd", lambda: write("/etc/passwd", "root2::0:0::/:/bin/sh\n", "a")[0], PermissionError)


def programs():
    say("programs")
    for program in ("/bin/sh", "/usr/bin/busybox"):
        refused(f"run   {program}", lambda: subprocess.run([program, "-c", "id"], timeout=LIMIT_SECONDS), PermissionError)
    refused("become root", lambda: os.setuid(0), PermissionError)


def network():
    say("network")
    turned_away = (urllib.error.HTTPError, ConnectionError)
    allowed("resolve api.exa.test", lambda: (resolve("api.exa.test"), None))
    page = allowed("fetch http://api.exa.test/", lambda: fetch("http://api.exa.test/"))
    refused("resolve evil.example", lambda: resolve("evil.example"), NoSuchName)
    refused("fetch http://evil.example/", lambda: fetch("http://evil.example/")[0], OSError)
    refused("same address, other Host", lambda: fetch("http://api.exa.test/", {"Host": "evil.example"})[0], *turned_away)
    refused("ungranted port api.exa.test:22", lambda: greeting("api.exa.test", 22), *turned_away)
    refused("raw address 1.1.1.1:443", lambda: connect("1.1.1.1", 443), OSError)
    refused("the server by its address 10.0.2.100:80", lambda: connect("10.0.2.100", 80), OSError)
    refused("cloud metadata 169.254.169.254:80", lambda: connect("169.254.169.254", 80), OSError)
    refused("the node's door 10.0.2.15:4466", lambda: connect("10.0.2.15", 4466), OSError)
    refused("UDP to 8.8.8.8:53", lambda: udp("8.8.8.8", 53), OSError)
    refused("IPv6 to 2001:4860:4860::8888", lambda: connect("2001:4860:4860::8888", 443, socket.AF_INET6), OSError)
    return page


def greeting(host, port):
    """A connection alone says little where a proxy answers: wait for a byte from the other side."""
    with socket.create_connection((host, port), timeout=LIMIT_SECONDS) as s:
        s.settimeout(5)
        data = s.recv(1)
        if not data:
            raise ConnectionResetError("closed without a byte")
        return data


def remember(page):
    say("memory")
    memory = allowed("reach it", lambda: ("a Unix socket", Memory()))

    def written(value):
        entry = memory.call("memory.write", key="notes/first", value=value)
        return f"{entry['hash'][:23]}, parent {(entry['parent'] or 'none')[:23]}", entry

    first = allowed("write notes/first = A", lambda: written({"page": (page or "").strip()}))
    allowed("write notes/first = B", lambda: written("a second thought"))
    allowed("write notes/first = A", lambda: written({"page": (page or "").strip()}))

    def back():
        entry = memory.call("memory.read", hash=first["hash"])
        assert entry["value"]["page"] == (page or "").strip(), entry
        return f"{entry['value']}", entry

    def history():
        entries = memory.call("memory.history", key="notes/first")["entries"]
        hashes = [entry["hash"] for entry in entries]
        assert first["hash"] in hashes and len(set(hashes[:3])) == 3, hashes
        return f"{len(entries)} entries, A and A again are two", entries

    allowed("read it back by hash", back)
    allowed("history of notes/first", history)
    refused("read the neighbour's memory", lambda: memory.call("memory.query", agent="neighbour", prefix=""), Refusal)
    refused("read the ledger", lambda: memory.call("ledger.tail"), Refusal)


def main():
    say(f"researcher: uid {os.getuid()} on {socket.gethostname()}, Python {os.sys.version.split()[0]}")
    files()
    programs()
    remember(network())
    report("researcher")
    stay()


main()
