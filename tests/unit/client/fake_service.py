"""A service without a model: `python fake_service.py <service> flags…` says what the real ones say.

FAKE_<SERVICE> is its fate: "fail" while it loads, "crash" with a trace, "leave" once it is ready, "stay" on SIGTERM.
"colocated" is the process of three services, of which speech is the one that fails.
"""

import json
import os
import signal
import sys
from typing import Any

process = sys.argv[1]
services = ("reasoner", "speech", "codec") if process == "colocated" else (process,)
fate = os.environ.get(f"FAKE_{process.upper()}", "")


def write(text: str) -> None:
    """Lines on stdout, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def say(service: str, event: str, **fields: Any) -> None:
    """One line of the log."""
    write(json.dumps({"event": event, "stage": service, "level": "info", **fields}))


def told(flag: str) -> int:
    """The port that a flag says; 0 is any."""
    return int(sys.argv[sys.argv.index(flag) + 1]) if flag in sys.argv else 0


def leave(*_: object) -> None:
    """A process that drains at once."""
    for service in services:
        say(service, "drained")
    sys.exit(0)


signal.signal(signal.SIGTERM, signal.SIG_IGN if fate == "stay" else leave)
write("not a line of JSON\n[1, 2]")
for service in services:
    prefix = f"--{service}-" if process == "colocated" else "--"
    addresses = {
        "address": f"127.0.0.1:{told(f'{prefix}port') or 1000 + len(service)}",
        "metrics_address": f"127.0.0.1:{told(f'{prefix}metrics-port') or 2000 + len(service)}",
    }
    say(service, "listening", **addresses)
if fate == "fail":
    say(services[len(services) // 2], "failed", level="error", reason="config.json is missing\nand so is all else")
    sys.exit(3)
if fate == "crash":
    raise RuntimeError("the card is gone")
say(process, "x" * 200_000)
for service in services:
    say(service, "ready")
if fate == "leave":
    say(services[-1], "out of memory", level="error")
    os.kill(os.getpid(), signal.SIGKILL)
while True:
    signal.pause()
