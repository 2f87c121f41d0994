"""Tries one way around the network's rules from inside a guest and prints what came of it, as one JSON object."""

import contextlib
import json
import os
import select
import socket
import ssl
import struct
import sys
import threading
import time

import told

TIMEOUT = 20
RESOLVER = "100.64.0.1"


def name_bytes(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def question(name, kind=1, edns=True):
    packet = struct.pack(">HHHHHH", 77, 0x0100, 1, 0, 0, 1 if edns else 0) + name_bytes(name) + struct.pack(">HH", kind, 1)
    return packet + (b"\0" + struct.pack(">HHIH", 41, 1232, 0, 0) if edns else b"")


def skip_name(packet, at):
    while packet[at] and packet[at] < 192:
        at += 1 + packet[at]
    return at + (2 if packet[at] >= 192 else 1)


def read_answer(packet):
    """Code, addresses, and the text of an extended error."""
    flags, _, answers, authorities, additional = struct.unpack(">HHHHH", packet[2:12])
    at = skip_name(packet, 12) + 4
    found = {"code": flags & 15, "addresses": [], "records": answers, "error": ""}
    for number in range(answers + authorities + additional):
        at = skip_name(packet, at)
        kind, _, _, length = struct.unpack(">HHIH", packet[at : at + 10])
        data = packet[at + 10 : at + 10 + length]
        at += 10 + length
        if number < answers and kind == 1:
            found["addresses"].append(socket.inet_ntoa(data))
        if number < answers and kind == 12:
            found["addresses"].append(data.hex())
        if kind == 41 and len(data) > 6:
            found["error"] = data[6:].decode(errors="replace")
    return found


def dns(name, kind="1", server=RESOLVER, port="53"):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(TIMEOUT if server == RESOLVER else 5)
        s.connect((server, int(port)))
        s.send(question(name, int(kind)))
        return read_answer(s.recv(4096))


def dns_tcp(name, server=RESOLVER, port="53"):
    with socket.create_connection((server, int(port)), timeout=TIMEOUT) as s:
        packet = question(name)
        s.sendall(struct.pack(">H", len(packet)) + packet)
        length = struct.unpack(">H", s.recv(2))[0]
        return read_answer(s.recv(length))


def tunnel(suffix, names):
    """What a DNS tunnel would ask: as many different names as it can, and how many of them exist."""
    there = refused = 0
    for number in range(int(names)):
        code = dns(f"{os.urandom(12).hex()}.{suffix}")["code"]
        there, refused = there + (code == 0), refused + (code == 3)
        time.sleep(0.006)  # below the bound of questions a second
    return {"there": there, "refused": refused}


def receive(s, most=1 << 20, then=None):
    """What comes until the end, or until nothing comes for `then` seconds after the first of it."""
    data = b""
    try:
        while len(data) < most and (chunk := s.recv(65536)):
            data += chunk
            s.settimeout(then or s.gettimeout())
    except (ConnectionResetError, socket.timeout, ssl.SSLError) as e:
        return data.decode(errors="replace") + f" <{type(e).__name__}>"
    return data.decode(errors="replace")


def raw(host, port, text, wait="5"):
    """Sends bytes (escapes as in Python) and returns what comes until the end, or for a while; the first may take its time."""
    with socket.create_connection((host, int(port)), timeout=TIMEOUT) as s:
        s.settimeout(12)
        s.sendall(text.encode().decode("unicode_escape").encode("latin-1"))
        return {"response": receive(s, then=float(wait))}


def tls(host, port, sni, header=None, path="/", alpn=""):
    """A request over TLS that nobody verifies; `sni` may be empty."""
    context = ssl._create_unverified_context()
    if alpn:
        context.set_alpn_protocols([alpn])
    with socket.create_connection((host, int(port)), timeout=TIMEOUT) as s:
        with context.wrap_socket(s, server_hostname=sni or None) as t:
            t.sendall(f"GET {path} HTTP/1.1\r\nHost: {header or sni}\r\nConnection: close\r\n\r\n".encode())
            return {"response": receive(t), "alpn": t.selected_alpn_protocol()}


def hello(sni):
    context = ssl._create_unverified_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        context.wrap_bio(incoming, outgoing, server_hostname=sni).do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


def ech(host, port, sni):
    """A hello with an encrypted one in it (RFC 9849)."""
    message = hello(sni)[9:]  # record and handshake headers
    at = 2 + 32
    at += 1 + message[at]
    at += 2 + struct.unpack(">H", message[at : at + 2])[0]
    at += 1 + message[at]
    inner = os.urandom(200)
    extension = struct.pack(">HH", 0xFE0D, len(inner)) + inner
    extensions = message[at + 2 :] + extension
    message = message[:at] + struct.pack(">H", len(extensions)) + extensions
    handshake = b"\x01" + struct.pack(">I", len(message))[1:] + message
    record = b"\x16\x03\x01" + struct.pack(">H", len(handshake)) + handshake
    with socket.create_connection((host, int(port)), timeout=TIMEOUT) as s:
        s.settimeout(5)
        s.sendall(record)
        data = s.recv(4096)
        return {"alert": data[5:7].hex() if data[:1] == b"\x15" else "", "answer": data[:1].hex()}


def late_sni(host, port, first, second):
    """A good hello whose next record on the same connection names another host."""
    with socket.create_connection((host, int(port)), timeout=TIMEOUT) as s:
        s.settimeout(5)
        s.sendall(hello(first) + hello(second))
        return {"answer": s.recv(4096)[:1].hex()}


def split_hello(host, port, sni):
    """A hello for another name, a byte a packet."""
    with socket.create_connection((host, int(port)), timeout=TIMEOUT) as s:
        s.settimeout(5)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in hello(sni):
            s.sendall(bytes([byte]))
        data = s.recv(4096)
        return {"alert": data[5:7].hex() if data[:1] == b"\x15" else "", "answer": data[:1].hex()}


def icmp(host):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as s:
        s.settimeout(3)
        s.connect((host, 0))
        s.send(struct.pack(">BBHHH", 8, 0, 0xF7FF, 0, 0))
        return {"answer": s.recv(512).hex()}


def packet_socket():
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as s:
        s.bind(("eth0", 0))
        return {"sent": s.send(b"\xff" * 60)}


def multicast(group, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(3)
        s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 4)
        s.sendto(question("web.test", edns=False), (group, int(port)))
        return {"answer": s.recv(512).hex()}


def flood(host, port, count, most):
    """Connections begun side by side, each with a request that is not answered, and how many stand when those above `most` are over.
    A silent one would not count for long: the node ends it after 10 s, and its kernel forgets one that found the listener's queue
    full, of which the guest never hears unless it sends something."""
    address = socket.gethostbyname(host)
    request = f"GET /slow HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    begun = [socket.socket() for _ in range(int(count))]
    by_descriptor = {s.fileno(): s for s in begun}
    polled = select.poll()
    for s in begun:
        s.setblocking(False)
        s.connect_ex((address, int(port)))
        polled.register(s, select.POLLOUT)
    over = {"ended": 0, "reset": 0}
    until = time.monotonic() + 9 * TIMEOUT
    while sum(over.values()) < len(begun) - int(most) and time.monotonic() < until:
        for fd, found in polled.poll(1000):
            if found == select.POLLOUT:
                with contextlib.suppress(OSError):  # reset by now: the next look tells
                    by_descriptor[fd].send(request)
                polled.modify(fd, select.POLLIN)
            else:
                over["reset" if found & (select.POLLERR | select.POLLHUP) else "ended"] += 1
                polled.unregister(fd)
    return {"kept": len(begun) - sum(over.values()), **over}


def slowloris(host, port, header):
    """A head that comes a byte a second; after how long it is cut."""
    started = time.time()
    with socket.create_connection((host, int(port)), timeout=TIMEOUT) as s:
        s.settimeout(1)
        s.sendall(f"GET / HTTP/1.1\r\nHost: {header}\r\nX-Slow: ".encode())
        while time.time() - started < 60:
            try:
                s.sendall(b"a")
                if s.recv(4096) == b"":
                    break
            except socket.timeout:
                continue
            except OSError:
                break
        return {"cut_after": time.time() - started}


def hold(host, port, send=""):
    """Keeps a connection open, says so, and tells when it is cut."""
    with socket.create_connection((host, int(port)), timeout=TIMEOUT) as s:
        s.settimeout(120)
        s.sendall(send.encode().decode("unicode_escape").encode("latin-1"))
        first = s.recv(64) if not send else b""
        print(json.dumps({"held": first.decode(errors="replace")}), flush=True)
        started = time.time()
        try:
            data = s.recv(1)
            return {"cut": "closed" if not data else "data", "after": time.time() - started}
        except OSError as e:
            return {"cut": type(e).__name__, "after": time.time() - started}


def environment():
    return dict(os.environ)


def spend(host, calls, tokens):
    """Calls at once, each of which may answer with so many tokens."""
    body = json.dumps({"model": "paid", "max_tokens": int(tokens), "messages": [{"role": "user", "content": "hi"}], "stream": True})
    request = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    statuses = []

    def call():
        with socket.create_connection((host, 80), timeout=TIMEOUT) as s:
            s.settimeout(TIMEOUT)
            s.sendall(request.encode())
            statuses.append(receive(s).split(" ")[1])

    threads = [threading.Thread(target=call) for _ in range(int(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"served": statuses.count("200"), "refused": len(statuses) - statuses.count("200"), "statuses": statuses}


told.main(globals())
