"""Everything that is logged is one JSON object a line on stdout."""

import json
import logging
import re
import subprocess
import sys
import textwrap
from typing import Any

SCRIPT = """
    import logging, warnings
    import structlog
    from services.runtime.interceptors import with_ids
    from services.runtime.logs import configure
    from services.runtime.settings import ServiceSettings

    configure("speech", ServiceSettings(log_format={log_format!r}))
    log = structlog.get_logger()
    with with_ids(session_id="s1", turn_index=2):
        log.info("listening", address="127.0.0.1:1")
    log.debug("unseen")
    logging.getLogger("grpc._cython").warning("from %s", "grpc", extra={{"peer": "p"}})
    warnings.warn("from warnings")
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("call failed", thing=object)
        logging.getLogger("asyncio").exception("lost")
"""


def output(log_format: str) -> list[str]:
    """The lines of a process that logs."""
    script = textwrap.dedent(SCRIPT).format(log_format=log_format)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_json_lines() -> None:
    lines: list[dict[str, Any]] = [json.loads(line) for line in output("json")]
    listening, grpc, warning, failed, lost = lines
    assert all({"event", "stage", "level", "timestamp"} <= set(line) for line in lines)
    assert {line["stage"] for line in lines} == {"speech"}
    assert listening["event"] == "listening"
    assert (listening["level"], listening["address"]) == ("info", "127.0.0.1:1")
    assert (listening["session_id"], listening["turn_index"]) == ("s1", 2)
    assert listening["timestamp"].endswith("Z")
    assert (grpc["event"], grpc["level"], grpc["peer"]) == ("from grpc", "warning", "p")
    assert "session_id" not in grpc
    assert "from warnings" in warning["event"]
    for line in (failed, lost):
        assert line["level"] == "error"
        assert line["exception"].startswith("Traceback")
        assert line["exception"].endswith("ZeroDivisionError: division by zero")


def test_console_lines_are_for_people() -> None:
    lines = output("console")
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    assert any("listening" in line and "session_id=s1" in line for line in plain)
    assert any("ZeroDivisionError" in line for line in lines)


def test_nothing_is_configured_by_importing() -> None:
    assert not [
        handler for handler in logging.getLogger().handlers if "structlog" in type(handler.formatter).__module__
    ]
