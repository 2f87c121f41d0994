"""What both demo agents share: try something, measure it, say what came of it."""

import json
import socket
import sys
import time

MEMORY = "/run/nullbox/memory.sock"
LIMIT_SECONDS = 20  # a refusal has to come sooner than this; a hang counts as a failure

tally = {"held": 0, "broken": 0}


def say(text=""):
    print(text, flush=True)


def show(held, word, what, found, started):
    tally["held" if held else "broken"] += 1
    mark = word if held else "BROKEN"
    say(f"  {mark:<8} {what}: {found} [{(time.monotonic() - started) * 1000:.0f} ms]")


def allowed(what, attempt):
    """The attempt has to succeed; what it returns is shown, and returned."""
    started = time.monotonic()
    try:
        found, value = attempt()
    except Exception as error:  # whatever it is, it is the finding
        show(False, "PASS", what, f"{type(error).__name__}: {error}", started)
        return None
    show(True, "PASS", what, found, started)
    return value


def refused(what, attempt, *kinds):
    """The attempt has to fail, soon, and with one of these errors: failing for another reason proves nothing."""
    started = time.monotonic()
    try:
        found = attempt()
    except Exception as error:  # whatever it is, it is the finding
        soon = time.monotonic() - started < LIMIT_SECONDS
        show(soon and isinstance(error, kinds), "REFUSED", what, f"{type(error).__name__}: {error}", started)
        return
    show(False, "REFUSED", what, f"went through: {found}", started)


def report(name):
    """The last line of a report; the demo looks for it."""
    total = tally["held"] + tally["broken"]
    say(f"{name}: {tally['held']} of {total} as they should be")
    return tally["broken"] == 0


def connect(host, port, family=socket.AF_INET):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(LIMIT_SECONDS)
        s.connect((host, port))
        return f"connected to {s.getpeername()[0]}"


class NoSuchName(Exception):
    """The DNS answered that there is no such name."""


def resolve(name):
    try:
        return socket.getaddrinfo(name, 80, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    except socket.gaierror as error:
        raise NoSuchName(name) if error.errno == socket.EAI_NONAME else error


class Refusal(Exception):
    """An error that the node answered with, in its own words."""


class Memory:
    """The agent's memory: JSON-RPC 2.0, one object a line, over a Unix socket."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(LIMIT_SECONDS)
        self.socket.connect(MEMORY)
        self.lines = self.socket.makefile("rw", encoding="utf-8")
        self.id = 0

    def call(self, method, **params):
        self.id += 1
        request = {"jsonrpc": "2.0", "id": self.id, "method": method, "params": params}
        self.lines.write(json.dumps(request) + "\n")
        self.lines.flush()
        line = self.lines.readline()
        if not line:
            raise ConnectionResetError("the memory closed the connection")
        answer = json.loads(line)
        if "error" in answer:
            error, why = answer["error"], answer["error"].get("data")
            raise Refusal(f"{error['message']} ({why['rule']})" if why else error["message"])
        return answer["result"]


def stay():
    """Goes on until it is told to stop."""
    import signal

    def leave(*_):
        say("told to stop: bye")
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)
    say("staying until I am told to stop")
    while True:
        time.sleep(3600)
