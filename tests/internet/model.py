"""A model that follows a script, in the wire formats of OpenAI's chat completions and Anthropic's messages, streamed.

It stands in the test internet (internet.py) for a provider's host, or alone on this machine's loopback:
usage: model.py SCRIPTS.json LOG    prints its port. SCRIPTS: {NAME: [TURN, ...]}; the goal says which: `[script NAME]`.

A turn: {"text", "calls": [{"name", "arguments"}], "expect": [texts that the newest message must have], "unexpected": [texts that no
message may have], "fail": [what goes wrong before it is served, in order: a status, "cut", "error", "slow"]}.
A request that the real API would refuse is refused: what is wrong goes to the log as `problem ...` and back as a 400.
"""

import itertools, json, re, sys, threading, time

failures = {}
lock = threading.Lock()


class Wrong(Exception):
    pass


def need(holds, what):
    if not holds:
        raise Wrong(what)


def exactly(value, required, optional=()):
    need(isinstance(value, dict), f"an object is wanted, not {value!r}")
    need(required <= set(value), f"{sorted(required - set(value))} missing in {sorted(value)}")
    need(set(value) <= required | set(optional), f"{sorted(set(value) - required - set(optional))} is not known")


def check_schema(schema):
    exactly(schema, {"type", "properties", "required"}, {"additionalProperties"})
    need(schema["type"] == "object" and set(schema["required"]) <= set(schema["properties"]), "schema of a tool")


def read_openai(body, fields):
    """The conversation of a request: [(role, text, calls, answered)]."""
    need(fields.get("authorization", "").startswith("Bearer "), "no bearer token")
    exactly(body, {"model", "messages", "tools", "stream", "stream_options", "max_completion_tokens"})
    need(body["stream"] is True and body["stream_options"] == {"include_usage": True}, "not streamed with usage")
    for tool in body["tools"]:
        exactly(tool, {"type", "function"})
        exactly(tool["function"], {"name", "description", "parameters"})
        check_schema(tool["function"]["parameters"])
    turns, waiting = [], []
    for place, message in enumerate(body["messages"]):
        role = message.get("role")
        need((role == "system") == (place == 0), "the system message comes first, once")
        need(isinstance(message.get("content"), str), "content is no text")
        if role == "tool":
            exactly(message, {"role", "tool_call_id", "content"})
            need(message["tool_call_id"] in waiting, f"an answer to no call: {message['tool_call_id']}")
            waiting.remove(message["tool_call_id"])
            turns.append(("result", message["content"]))
            continue
        need(not waiting, f"calls without an answer: {waiting}")
        exactly(message, {"role", "content"}, {"tool_calls"} if role == "assistant" else ())
        calls = message.get("tool_calls")
        need(calls is None or calls, "an empty list of calls")
        for call in calls or []:
            exactly(call, {"id", "type", "function"})
            exactly(call["function"], {"name", "arguments"})
            need(isinstance(call["function"]["arguments"], str), "arguments are no text")
            waiting.append(call["id"])
        turns.append((role, message["content"]))
    need(not waiting, f"calls without an answer: {waiting}")
    return turns


def read_anthropic(body, fields):
    need(fields.get("x-api-key") and fields.get("anthropic-version") == "2023-06-01", "no key or no version")
    exactly(body, {"model", "max_tokens", "system", "messages", "tools", "stream"})
    need(body["stream"] is True and body["max_tokens"] > 0, "not streamed, or no bound")
    for tool in body["tools"]:
        exactly(tool, {"name", "description", "input_schema"})
        check_schema(tool["input_schema"])
    turns, waiting, last = [("system", body["system"])], [], None
    for message in body["messages"]:
        exactly(message, {"role", "content"})
        role = message["role"]
        need(role in ("user", "assistant") and role != last and message["content"], "roles take turns, with content")
        last = role
        answered = []
        for block in message["content"]:
            kind = block.get("type")
            if kind == "text":
                exactly(block, {"type", "text"})
                need(block["text"].strip(), "empty text")
                turns.append((role, block["text"]))
            elif kind == "tool_result" and role == "user":
                exactly(block, {"type", "tool_use_id", "content", "is_error"})
                answered.append(block["tool_use_id"])
                turns.append(("result", block["content"]))
            elif kind == "tool_use" and role == "assistant":
                exactly(block, {"type", "id", "name", "input"})
                need(isinstance(block["input"], dict), "input is no object")
                waiting.append(block["id"])
            else:
                raise Wrong(f"block {kind} of {role}")
        if role == "user":
            need(sorted(answered) == sorted(waiting), f"calls {waiting} are answered by {answered}")
            waiting = []
        elif not any(block["type"] == "tool_use" for block in message["content"]):
            turns.append(("assistant", ""))
    # One entry an answer: those with calls and without text have none yet.
    said = sum(message["role"] == "assistant" for message in body["messages"])
    return [turn for turn in turns if turn[0] != "assistant"] + [("assistant", "")] * said


def halves(text):
    """A text in pieces that fall into the middle of words and escapes."""
    sizes = itertools.chain([1, 3, 2, 7, 1, 11] * 20, itertools.repeat(160))
    while text:
        size = next(sizes)
        yield text[:size]
        text = text[size:]


def openai_events(turn, number):
    def chunk(delta, reason=None):
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], "usage": None}

    yield None, chunk({"role": "assistant", "content": "", "refusal": None})
    for piece in halves(turn.get("text", "")):
        yield None, chunk({"content": piece})
    calls = turn.get("calls", [])
    for place, call in enumerate(calls):
        first = {"index": place, "id": f"call_{number}_{place}", "type": "function", "function": {"name": call["name"], "arguments": ""}}
        yield None, chunk({"tool_calls": [first]})
    streams = [list(halves(arguments(call))) for call in calls]
    for pieces in itertools.zip_longest(*streams):
        for place, piece in enumerate(pieces):
            if piece is not None:
                yield None, chunk({"tool_calls": [{"index": place, "function": {"arguments": piece}}]})
    yield None, chunk({}, turn.get("end") or ("tool_calls" if calls else "stop"))
    usage = {"prompt_tokens": 100 + number, "completion_tokens": 20, "total_tokens": 120 + number}
    yield None, {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], "usage": usage}
    yield None, "[DONE]"


def anthropic_events(turn, number):
    yield "message_start", {"message": {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None,
                                        "stop_sequence": None, "usage": {"input_tokens": 100 + number, "output_tokens": 1}}}
    yield "ping", {}
    place = 0
    if turn.get("text"):
        yield "content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}
        for piece in halves(turn["text"]):
            yield "content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": piece}}
        yield "content_block_stop", {"index": 0}
        place = 1
    for call in turn.get("calls", []):
        block = {"type": "tool_use", "id": f"toolu_{number}_{place}", "name": call["name"], "input": {}}
        yield "content_block_start", {"index": place, "content_block": block}
        for piece in itertools.chain([""], halves(arguments(call))):
            yield "content_block_delta", {"index": place, "delta": {"type": "input_json_delta", "partial_json": piece}}
        yield "content_block_stop", {"index": place}
        place += 1
    reason = turn.get("end") or ("tool_use" if turn.get("calls") else "end_turn")
    yield "message_delta", {"delta": {"stop_reason": reason, "stop_sequence": None}, "usage": {"output_tokens": 20}}
    yield "message_stop", {}


def arguments(call):
    given = call["arguments"]
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)


def send(stream, status, body, fields=()):
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n" + "".join(f"{f}\r\n" for f in fields)
    stream.sendall(head.encode() + b"\r\n" + body)


def error(kind, message):
    return json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()


def stream_turn(stream, events, how):
    """Chunked, each chunk a few bytes that end wherever they do: in a letter, in a line end."""
    stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    text = b": stream\n\n"
    for name, data in events:
        if isinstance(data, dict) and name:
            data = {"type": name, **data}
        text += (f"event: {name}\n" if name else "").encode()
        text += b"data: " + (data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)).encode() + b"\n\n"
    if how == "cut":
        text = text[: len(text) * 2 // 3]
    if how == "error":
        text = text[: text.index(b"\n\n", len(text) // 2) + 2] + b"event: error\ndata: " + error("overloaded_error", "Overloaded") + b"\n\n"
    sizes = itertools.cycle([3, 1, 64, 7, 1500, 2])
    packet = b""
    while text:
        size = next(sizes)
        piece, text = text[:size], text[size:]
        packet += b"%x\r\n%s\r\n" % (len(piece), piece)
        if len(packet) > 1000 or how == "slow":
            stream.sendall(packet)
            packet = b""
            time.sleep(0.001 if how == "slow" else 0)
    if how == "cut":
        stream.sendall(packet)
        raise OSError("cut, as the script says")
    stream.sendall(packet + b"0\r\n\r\n")


def respond(stream, path, fields, body, scripts, log):
    """Answers one request by its script. fields: lower-case names."""
    reader, events = (read_anthropic, anthropic_events) if path.endswith("/messages") else (read_openai, openai_events)
    try:
        asked = json.loads(body)
        turns = reader(asked, fields)
        goal = next((text for role, text in turns if role == "user"), "")
        name = re.search(r"\[script ([a-z0-9_-]+)\]", goal)
        need(name and name[1] in scripts, "the goal names no script")
        number = sum(role == "assistant" for role, _ in turns)
        need(number < len(scripts[name[1]]), f"the script {name[1]} has no turn {number}")
        turn = scripts[name[1]][number]
        newest = "\n".join(text for role, text in turns if role in ("result", "user"))
        for text in turn.get("expect", []):
            need(text in newest, f"turn {number} of {name[1]} has no {text!r}: {newest[-1500:]}")
        for text in turn.get("unexpected", []):
            need(text not in body.decode(), f"turn {number} of {name[1]} has {text!r}")
    except (Wrong, ValueError, KeyError, TypeError, AttributeError) as wrong:
        log(f"problem {wrong}")
        return send(stream, "400 Bad Request", error("invalid_request_error", str(wrong)))
    with lock:
        left = failures.setdefault((name[1], number, path), list(turn.get("fail", [])))
        how = left.pop(0) if left else None
    log(f"turn {name[1]} {number} {path} {how or 'served'}")
    if isinstance(how, int):
        return send(stream, f"{how} Failed", error("overloaded_error", f"status {how}"), ["Retry-After: 0"])
    stream_turn(stream, events(turn, number), how)


def main():
    import http.server

    with open(sys.argv[1]) as file:
        scripts = json.load(file)

    def log(text):
        with lock, open(sys.argv[2], "a") as out:
            out.write(text + "\n")

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            fields = {name.lower(): value for name, value in self.headers.items()}
            try:
                respond(self.connection, self.path, fields, body, scripts, log)
            except OSError:
                self.close_connection = True

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_):
            pass  # who asked has gone

    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
