"""The test internet: HTTP, TLS, banner and DNS servers on whatever addresses this namespace has.

usage: internet.py DIRECTORY   (cert.pem, key.pem and dns.json there; appends to seen.log)
"""
import json, os, socket, socketserver, ssl, struct, sys, threading

sys.dont_write_bytecode = True
import host

directory = sys.argv[1]
lock = threading.Lock()


def seen(text):
    with lock, open(os.path.join(directory, "seen.log"), "a") as log:
        log.write(text + "\n")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 512


def read_head(stream):
    head = b""
    while b"\r\n\r\n" not in head:
        data = stream.recv(4096)
        if not data:
            return None
        head += data
    return head.decode("latin-1")


def answer_http(stream, kind, local):
    while True:
        head = read_head(stream)
        if head is None:
            return
        line = head.split("\r\n")[0]
        host = [h.split(":", 1)[1].strip() for h in head.split("\r\n") if h.lower().startswith("host:")]
        seen(f"{kind} {local} {line} host={host}")
        body = f"hello from {local} by {kind}\n".encode()
        if line.startswith("GET /big"):
            body = b"x" * (4 * 1024 * 1024)
        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


class Http(socketserver.BaseRequestHandler):
    def handle(self):
        local = self.request.getsockname()[0]
        seen(f"connect {local}:{self.request.getsockname()[1]}")
        try:
            answer_http(self.request, "http", local)
        except ConnectionError:  # the node cut it
            pass


class Tls(socketserver.BaseRequestHandler):
    def handle(self):
        local = self.request.getsockname()[0]
        seen(f"connect {local}:443")
        if os.path.exists(os.path.join(directory, "mute")):
            self.request.settimeout(60)
            while self.request.recv(4096):
                pass
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(os.path.join(directory, "cert.pem"), os.path.join(directory, "key.pem"))
        asked = []

        def named(stream, name, _):
            """A name with a certificate of its own is a host behind the broker."""
            own = os.path.join(directory, "certs", f"{name}.pem")
            if name and os.path.exists(own):
                asked.append(name)
                other = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                other.load_cert_chain(own)
                stream.context = other

        context.sni_callback = named
        try:
            with context.wrap_socket(self.request, server_side=True) as stream:
                if asked:
                    host.serve(stream, asked[0], directory, seen)
                else:
                    answer_http(stream, "tls", local)
        except (ssl.SSLError, OSError):
            pass


class Banner(socketserver.BaseRequestHandler):
    """Speaks first, then echoes, like SSH in shape."""

    def handle(self):
        seen(f"connect {self.request.getsockname()[0]}:22")
        self.request.sendall(b"SSH-2.0-test\r\n")
        while data := self.request.recv(4096):
            seen(f"banner got {data[:40]!r}")
            self.request.sendall(data)


def read_name(packet, at):
    labels = []
    while packet[at]:
        labels.append(packet[at + 1 : at + 1 + packet[at]].decode())
        at += 1 + packet[at]
    return ".".join(labels), at + 1


def dns_answer(packet):
    name, end = read_name(packet, 12)
    with open(os.path.join(directory, "dns.json")) as table:
        addresses = json.load(table).get(name.lower())
    seen(f"dns {name}")
    code = 0 if addresses is not None else 3
    out = packet[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, len(addresses or []), 0, 0)
    out += packet[12 : end + 4]
    for address in addresses or []:
        out += b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 0, 4) + socket.inet_aton(address)
    return out


def serve_dns():
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("203.0.113.53", 53))
    while True:
        packet, peer = udp.recvfrom(4096)
        try:
            udp.sendto(dns_answer(packet), peer)
        except (IndexError, ValueError):
            pass


for port, handler in [(80, Http), (8080, Http), (443, Tls), (22, Banner)]:
    threading.Thread(target=Server(("0.0.0.0", port), handler).serve_forever, daemon=True).start()
threading.Thread(target=serve_dns, daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
