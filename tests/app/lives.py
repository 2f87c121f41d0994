"""Agents for the tests of lives: each does one thing, named by its argument."""

import http.server
import os
import socket
import sys
import time


def tick():
    for number in range(10**9):
        print(f"{number} {time.time()} {time.monotonic()}", flush=True)
        time.sleep(0.2)


def crash():
    time.sleep(0.3)
    sys.exit(7)


def idle():
    while True:
        time.sleep(1000)


def eat():
    held = []
    while True:
        held.append(bytearray(os.urandom(1 << 20)))


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if os.path.exists("/tmp/sick") else 200)
        self.end_headers()

    def log_message(self, *_):
        pass


def web():
    http.server.HTTPServer(("127.0.0.1", 8080), Health).serve_forever()


def hold():
    with socket.create_connection(("web.test", 80), timeout=60) as s:
        s.sendall(b"POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 1000000\r\n\r\n")
        print("connected", flush=True)
        while True:
            s.sendall(b"more")
            time.sleep(0.3)


{"tick": tick, "crash": crash, "idle": idle, "eat": eat, "web": web, "hold": hold}[sys.argv[1]]()
