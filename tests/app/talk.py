"""An agent that answers each line it is given; `quit` ends it with status 5, `size` tells its terminal's."""

import os
import sys

print("talk: here", flush=True)
for line in sys.stdin:
    word = line.strip()
    if word == "quit":
        sys.exit(5)
    if word == "size":
        print("talk: size", *os.get_terminal_size(0), flush=True)
    else:
        print("talk: heard", word, flush=True)
print("talk: end of input", flush=True)
