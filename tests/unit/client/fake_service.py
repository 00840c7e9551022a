"""A service without a model: `python fake_service.py <service> flags…` says what the real ones say.

FAKE_<SERVICE> is its fate: "fail" while it loads, "crash" with a trace, "leave" once it is ready, "stay" on SIGTERM.
"""

import json
import os
import signal
import sys
from typing import Any

service = sys.argv[1]
fate = os.environ.get(f"FAKE_{service.upper()}", "")


def write(text: str) -> None:
    """Lines on stdout, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def say(event: str, **fields: Any) -> None:
    """One line of the log."""
    write(json.dumps({"event": event, "stage": service, "level": "info", **fields}))


def leave(*_: object) -> None:
    """A service that drains at once."""
    say("drained")
    sys.exit(0)


signal.signal(signal.SIGTERM, signal.SIG_IGN if fate == "stay" else leave)
write("not a line of JSON\n[1, 2]")
say("listening", address=f"127.0.0.1:{1000 + len(service)}", metrics_address=f"127.0.0.1:{2000 + len(service)}")
if fate == "fail":
    say("failed", level="error", reason="config.json is missing\nand so is all else")
    sys.exit(3)
if fate == "crash":
    raise RuntimeError("the card is gone")
say("x" * 200_000)
say("ready")
if fate == "leave":
    say("out of memory", level="error")
    os.kill(os.getpid(), signal.SIGKILL)
while True:
    signal.pause()
