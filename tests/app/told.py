"""How what an attempt inside a guest came to is told: one JSON object on the last line."""

import json
import sys
import time


def main(attempts):
    """Makes the attempt that the first argument names, with the others."""
    name, arguments = sys.argv[1], sys.argv[2:]
    started = time.time()
    try:
        result = attempts[name](*arguments)
    except Exception as e:  # whatever it is, it is the finding
        result = {"error": type(e).__name__, "errno": getattr(e, "errno", None), "text": str(e)}
    result["ms"] = round((time.time() - started) * 1000)
    print(json.dumps(result))
