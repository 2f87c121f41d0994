"""A host behind the broker: what it does is in the path. Everything it is asked is written to seen.log, so a test sees what reached it."""
import base64, gzip, hashlib, json, os, time


def read_request(stream, waiting, directory):
    """Head and body of one request; None at the end."""
    while b"\r\n\r\n" not in waiting:
        data = stream.recv(65536)
        if not data:
            return None
        waiting += data
    head, rest = waiting.split(b"\r\n\r\n", 1)
    lines = head.decode("latin-1").split("\r\n")
    fields = [tuple(part.strip() for part in line.split(":", 1)) for line in lines[1:]]
    named = {name.lower(): value for name, value in fields}

    def more():
        nonlocal rest
        data = stream.recv(65536)
        if not data:
            raise OSError("ended in a body")
        rest += data

    if lines[0].split(" ")[1].endswith("/stall"):
        # Nothing is read of a body until the test says so.
        wait_for(os.path.join(directory, "go"))
    body = b""
    if named.get("transfer-encoding") == "chunked":
        while True:
            while b"\r\n" not in rest:
                more()
            size, rest = rest.split(b"\r\n", 1)
            size = int(size, 16)
            while len(rest) < size + 2:
                more()
            body, rest = body + rest[:size], rest[size + 2 :]
            if size == 0:
                break
    else:
        length = int(named.get("content-length", 0))
        while len(rest) < length:
            more()
        body, rest = rest[:length], rest[length:]
    return lines[0], fields, named, body, rest


def answer(stream, status, fields, body, method="GET"):
    head = "".join(f"{name}: {value}\r\n" for name, value in fields)
    stream.sendall(f"HTTP/1.1 {status}\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode())
    if method != "HEAD":
        stream.sendall(body)


def chunk(stream, data):
    stream.sendall(b"%x\r\n%s\r\n" % (len(data), data))


def begin_events(stream):
    stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")


def wait_for(path):
    until = time.time() + 60
    while not os.path.exists(path) and time.time() < until:
        time.sleep(0.01)


def chat(stream, asked):
    """OpenAI's chat completions, as far as it goes. `user` says how honest the host is."""
    used = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    if asked.get("user") == "greedy":
        used["completion_tokens"] = 50_000
    if not asked.get("stream"):
        told = {} if asked.get("user") == "silent" else {"usage": used}
        answer(stream, "200 OK", [("Content-Type", "application/json")], json.dumps({"choices": [], **told}).encode())
        return
    begin_events(stream)
    for number in range(3):
        chunk(stream, b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % number)
    if asked.get("stream_options", {}).get("include_usage") and asked.get("user") != "silent":
        chunk(stream, b"data: %s\n\n" % json.dumps({"choices": [], "usage": used}).encode())
    chunk(stream, b"data: [DONE]\n\n")
    chunk(stream, b"")


def serve(stream, name, directory, seen):
    waiting = b""
    while (request := read_request(stream, waiting, directory)) is not None:
        line, fields, named, body, waiting = request
        method, target, _ = line.split(" ")
        digest = hashlib.sha256(body).hexdigest()
        seen(f"host {name} {line} {json.dumps(fields)} body={len(body)}:{digest[:16]}")
        secret = named.get("authorization", "none").removeprefix("Bearer ")
        path = target.split("?")[0]
        if path == "/redirect":
            answer(stream, "302 Found", [("Location", target.split("to=")[1])], b"go there")
        elif path == "/echo-header":
            answer(stream, "200 OK", [("X-Echo", f"was {secret}")], b"ok")
        elif path == "/echo-body":
            answer(stream, "401 Unauthorized", [], f"wrong key {secret} given".encode())
        elif path == "/echo-base64":
            answer(stream, "200 OK", [], base64.b64encode(f"Bearer {secret}".encode()))
        elif path == "/echo-json":
            answer(stream, "200 OK", [], "".join(f"\\u{ord(c):04x}" for c in secret).encode())
        elif path == "/echo-events":
            begin_events(stream)
            chunk(stream, b"data: first\n\n")
            chunk(stream, b"data: " + secret[:7].encode())
            time.sleep(0.2)
            chunk(stream, secret[7:].encode() + b"\n\ndata: last\n\n")
            chunk(stream, b"")
        elif path == "/events":
            begin_events(stream)
            for number in range(3):
                chunk(stream, b"data: event %d\n\n" % number)
                wait_for(os.path.join(directory, f"go{number}"))
            chunk(stream, b"")
        elif path == "/gzip":
            answer(stream, "200 OK", [("Content-Encoding", "gzip")], gzip.compress(secret.encode()))
        elif path == "/coded":
            stream.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n")
            chunk(stream, gzip.compress(secret.encode()))
            chunk(stream, b"")
        elif path == "/two-lengths":
            stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n")
            chunk(stream, b"hidden words")
            chunk(stream, b"")
        elif path == "/cookie":
            answer(stream, "200 OK", [("Set-Cookie", "session=1"), ("Alt-Svc", 'h3=":443"')], b"ok")
        elif path == "/long-head":
            answer(stream, "200 OK", [("X-Long", "x" * 100_000)], b"ok")
        elif path == "/short":
            stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly part")
            return
        elif path == "/upgrade":
            stream.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
        elif path == "/big":
            answer(stream, "200 OK", [], b"0123456789abcdef" * (512 * 1024))
        elif path == "/v1/chat/completions":
            chat(stream, json.loads(body))
        elif path == "/slow":
            wait_for(os.path.join(directory, "go"))
            answer(stream, "200 OK", [], b"late")
        else:
            answer(stream, "200 OK", [], f"{name} got {method} {target} {len(body)} {digest}\n".encode(), method)
