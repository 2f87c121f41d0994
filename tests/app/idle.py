"""An agent that says it is there and waits to be stopped."""

import signal

print("idle: here", flush=True)
signal.pause()
