"""The demo's neighbour: an agent without network that tries to see another agent's memory. With ENTRY in its environment (the hash of
a real entry) it tries just that one, and ends."""

import os
import socket
import sys

from checks import Memory, Refusal, allowed, connect, refused, report, say, stay


def own():
    entries = Memory().call("memory.query", prefix="")["entries"]
    assert all(entry["agent"] == "neighbour" for entry in entries), entries
    return f"{len(entries)} entries, all my own", entries


def by_hash(digest):
    refused("read an entry of the researcher by its hash", lambda: Memory().call("memory.read", hash=digest), Refusal)
    sys.exit(0 if report("neighbour") else 1)


def main():
    if "ENTRY" in os.environ:
        by_hash(os.environ["ENTRY"])
    say(f"neighbour: uid {os.getuid()} on {socket.gethostname()}")
    allowed("list my memory", own)
    for method, params in (
        ("memory.read", {"agent": "researcher", "key": "notes/first"}),
        ("memory.query", {"agent": "researcher", "prefix": ""}),
        ("memory.history", {"agent": "researcher", "key": "notes/first"}),
        ("memory.write", {"agent": "researcher", "key": "notes/first", "value": "forged"}),
        ("memory.list", {}),
    ):
        who = " of the researcher" if params else " of all agents"
        refused(f"{method}{who}", lambda: Memory().call(method, **params), Refusal)
    refused("any network at all, 1.1.1.1:443", lambda: connect("1.1.1.1", 443), OSError)
    report("neighbour")
    stay()


main()
