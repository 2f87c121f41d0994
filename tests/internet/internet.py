"""A test internet at the other end of a node's network cable, in a network namespace of its own: nothing leaves this machine.

usage: internet.py DIRECTORY
       DIRECTORY has ca.pem, and of each host HOST.pem (certificate and key). QEMU's frames come over DIRECTORY/node.sock and
       DIRECTORY/internet.sock (-netdev dgram, local.type=unix). Prints the port of this machine's loopback that leads to the node's
       gate. Appends what it sees to DIRECTORY/seen.log. DIRECTORY/dns.json says what names stand for: {NAME: [[ADDRESS or "=ALIAS", ...], ...]},
       one list an answer, the last one from then on. scripts.json, if there is one, is what the models' hosts answer by (model.py).
"""

import base64, fcntl, json, os, socket, socketserver, ssl, struct, subprocess, sys, threading, time

sys.dont_write_bytecode = True
import model

NODE = "192.0.2.5"
GATEWAY = "192.0.2.1"
# web, other, api, evil, model, claude, resolver; then what nobody may reach.
ADDRESSES = ["203.0.113.10", "203.0.113.11", "203.0.113.20", "203.0.113.66", "203.0.113.30", "203.0.113.31", "203.0.113.53", "8.8.8.8", "1.1.1.1",
             "169.254.169.254", "168.63.129.16", "10.9.9.9", "192.168.77.7", "100.100.100.200"]
GATE_PORT = 4466
directory = sys.argv[1]
lock = threading.Lock()
asked = {}


def place(name):
    return os.path.join(directory, name)


def seen(text):
    with lock, open(place("seen.log"), "a") as log:
        log.write(text + "\n")


def outer():
    """Listens on this machine's loopback, then goes on in a namespace of its own."""
    gate = socket.create_server(("127.0.0.1", 0), backlog=64)
    print(gate.getsockname()[1], flush=True)
    os.set_inheritable(gate.fileno(), True)
    os.execvp("unshare", ["unshare", "-Urn", sys.executable, __file__, directory, str(gate.fileno())])


def pump():
    """Frames between QEMU and a TAP."""
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH", b"lan0", 0x1002))  # TUNSETIFF, IFF_TAP | IFF_NO_PI
    for command in [["link", "set", "lo", "up"], ["link", "set", "lan0", "up"], ["addr", "add", GATEWAY + "/24", "dev", "lan0"]]:
        subprocess.run(["ip", *command], check=True)
    for address in ADDRESSES:
        subprocess.run(["ip", "addr", "add", address + "/32", "dev", "lo"], check=True)
    wire = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    wire.bind(place("internet.sock"))

    def inward():
        while True:
            os.write(tap, wire.recv(65536))

    def outward():
        while True:
            frame = os.read(tap, 65536)
            try:
                wire.sendto(frame, place("node.sock"))
            except OSError:
                time.sleep(0.01)  # QEMU has not begun, or has ended, or its queue is full

    for side in (inward, outward):
        threading.Thread(target=side, daemon=True).start()


def copy(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        sink.close()


def serve_gate(gate):
    while True:
        client, _ = gate.accept()
        threading.Thread(target=serve_gate_client, args=(client,), daemon=True).start()


def serve_gate_client(client):
    try:
        node = socket.create_connection((NODE, GATE_PORT), timeout=5)
        node.settimeout(None)
    except OSError:
        return client.close()
    threading.Thread(target=copy, args=(node, client), daemon=True).start()
    copy(client, node)


def read_name(packet, at):
    labels = []
    while packet[at]:
        labels.append(packet[at + 1 : at + 1 + packet[at]].decode("latin-1"))
        at += 1 + packet[at]
    return ".".join(labels), at + 1


def dns_answer(packet):
    name, end = read_name(packet, 12)
    with open(place("dns.json")) as table:
        answers = json.load(table).get(name.lower())
    seen(f"dns {name}")
    records = b""
    count = 0
    if answers is not None:
        turn = asked[name.lower()] = asked.get(name.lower(), -1) + 1
        owner = b"\xc0\x0c"
        for item in answers[min(turn, len(answers) - 1)]:
            if item.startswith("="):
                alias = b"".join(bytes([len(l)]) + l.encode() for l in item[1:].split(".")) + b"\0"
                records += owner + struct.pack(">HHIH", 5, 1, 0, len(alias)) + alias
                owner = alias
            else:
                records += owner + struct.pack(">HHIH", 1, 1, 0, 4) + socket.inet_aton(item)
            count += 1
    code = 0 if answers is not None else 3
    return packet[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, count, 0, 0) + packet[12 : end + 4] + records


def serve_udp(port):
    """The resolver answers at 53; whatever else comes anywhere is only seen."""
    sockets = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sockets.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO: to whom it came
    sockets.bind(("", port))
    while True:
        packet, ancillary, _, peer = sockets.recvmsg(4096, 256)
        to = socket.inet_ntoa(ancillary[0][2][8:12])
        if port != 53 or to != "203.0.113.53":
            seen(f"udp {to}:{port}")
            continue
        try:
            answer = dns_answer(packet)
            sockets.sendmsg([answer], [(socket.IPPROTO_IP, 8, struct.pack("I4s4s", 0, socket.inet_aton(to), b"\0" * 4))], 0, peer)
        except (IndexError, ValueError):
            pass


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 512


class Request:
    def __init__(self, head, body):
        lines = head.split("\r\n")
        self.line, self.body = lines[0], body
        self.method, self.path = (lines[0].split(" ") + ["", ""])[:2]
        self.fields = [line.partition(":")[::2] for line in lines[1:] if ":" in line]

    def field(self, name):
        return next((value.strip() for key, value in self.fields if key.lower() == name), "")


def read_request(stream, kept):
    data = kept
    while b"\r\n\r\n" not in data:
        more = stream.recv(65536)
        if not more:
            return None, b""
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    request = Request(head.decode("latin-1"), b"")
    length = int(request.field("content-length") or 0)
    if request.field("transfer-encoding").lower() == "chunked":
        while b"0\r\n\r\n" not in rest:
            rest += stream.recv(65536)
        body, _, rest = rest.partition(b"0\r\n\r\n")
        request.body = body
        return request, rest
    while len(rest) < length:
        rest += stream.recv(65536)
    request.body = rest[:length]
    return request, rest[length:]


def reply(body, status="200 OK", fields=()):
    body = body if isinstance(body, bytes) else body.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n" + "".join(f"{f}\r\n" for f in fields)
    return head.encode() + b"\r\n" + body


def usage(request, stream):
    """An answer in the shape of OpenAI's chat completions that used 7 and 5 tokens."""
    try:
        asked = json.loads(request.body or b"{}")
    except ValueError:
        asked = {}
    counts = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    if not asked.get("stream"):
        return stream.sendall(reply(json.dumps({"model": asked.get("model"), "choices": [], "usage": counts}), fields=["Content-Type: application/json"]))
    stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
    for part in range(3):
        stream.sendall(b'data: {"choices":[{"delta":{"content":"part"}}],"usage":null}\n\n')
        time.sleep(0.2)
    stream.sendall(b"data: " + json.dumps({"choices": [], "usage": counts}).encode() + b"\n\ndata: [DONE]\n\n")
    stream.close()


def answer(stream, kind, local):
    kept = b""
    while True:
        request, kept = read_request(stream, kept)
        if request is None:
            return
        key = request.field("authorization") or request.field("x-api-key")
        seen(f"{kind} {local} {request.line} host={request.field('host')} body={len(request.body)} fields={request.fields}")
        path = request.path.split("?")[0]
        if kind == "tls" and HOSTS.get(local) in MODELS:
            with open(place("scripts.json")) as file:
                scripts = json.load(file)
            fields = {name.lower(): value.strip() for name, value in request.fields}
            model.respond(stream, path, fields, request.body, scripts, seen)
        elif path == "/reflect":
            stream.sendall(reply(f"your key is {key}"))
        elif path == "/reflect-base64":
            stream.sendall(reply(base64.b64encode(b"k:" + key.encode())))
        elif path == "/reflect-field":
            stream.sendall(reply("", fields=[f"X-Debug: {key}"]))
        elif path == "/redirect":
            stream.sendall(reply("", "302 Found", ["Location: https://evil.test/stolen"]))
        elif path == "/big":
            stream.sendall(reply(b"x" * (4 << 20)))
        elif path == "/slow":
            time.sleep(600)
        elif path.endswith("/chat/completions"):
            usage(request, stream)
        else:
            stream.sendall(reply(f"hello from {local} by {kind} for {request.field('host')}\n"))


class Http(socketserver.BaseRequestHandler):
    def handle(self):
        local, port = self.request.getsockname()
        seen(f"connect {local}:{port}")
        answer(self.request, "http", local)


HOSTS = {"203.0.113.10": "web", "203.0.113.11": "other", "203.0.113.20": "api", "203.0.113.66": "evil", "203.0.113.30": "model", "203.0.113.31": "claude"}
MODELS = ["model", "claude"]


class Tls(socketserver.BaseRequestHandler):
    def handle(self):
        local, port = self.request.getsockname()
        seen(f"connect {local}:{port}")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(place(HOSTS.get(local, "web") + ".pem"))
        with context.wrap_socket(self.request, server_side=True) as stream:
            answer(stream, "tls", local)


class Banner(socketserver.BaseRequestHandler):
    """Speaks first, then echoes."""

    def handle(self):
        local, port = self.request.getsockname()
        seen(f"connect {local}:{port}")
        self.request.sendall(b"SSH-2.0-test\r\n")
        while data := self.request.recv(4096):
            self.request.sendall(data)


def quietly(handler):
    class Quiet(handler):
        def handle(self):
            try:
                super().handle()
            except (OSError, ValueError):
                pass

    return Quiet


def inner(gate):
    pump()
    tcp = [(80, Http), (8080, Http), (443, Tls), (22, Banner), (53, Banner), (853, Banner)]
    for port, handler in tcp:
        threading.Thread(target=Server(("0.0.0.0", port), quietly(handler)).serve_forever, daemon=True).start()
    for port in [53, 123, 443, 853, 5353, 5355]:
        threading.Thread(target=serve_udp, args=(port,), daemon=True).start()
    print("ready", flush=True)
    serve_gate(gate)


if len(sys.argv) == 2:
    outer()
else:
    inner(socket.socket(fileno=int(sys.argv[2])))
