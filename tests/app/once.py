"""An agent that writes to both streams and ends with status 3."""

import sys

print("once: out", flush=True)
print("once: err", file=sys.stderr, flush=True)
sys.exit(3)
