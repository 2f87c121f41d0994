"""How what an attempt inside a guest came to is told: one JSON object on the last line."""

import json
import sys
import time


def tried(attempts, name, *arguments):
    started = time.time()
    try:
        result = attempts[name](*arguments)
    except Exception as e:  # whatever it is, it is the finding
        result = {"error": type(e).__name__, "errno": getattr(e, "errno", None), "text": str(e)}
    result["ms"] = round((time.time() - started) * 1000)
    return result


def main(attempts):
    """Makes the attempt that the first argument names, with the others; `each`: all that a JSON array of such arrays holds, in turn."""
    if sys.argv[1] == "each":
        result = {"each": [tried(attempts, *one) for one in json.loads(sys.argv[2])]}
    else:
        result = tried(attempts, *sys.argv[1:])
    print(json.dumps(result))
