"""Log lines on stdout: one JSON object each, or text for people."""

import logging
import logging.config
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

from services.runtime.settings import ProcessSettings


def configure(stage: str, settings: ProcessSettings) -> None:
    """Sends structlog's and the standard library's records to stdout, with stage, level, timestamp and ids."""

    def add_stage(_logger: Any, _method: str, event: EventDict) -> EventDict:
        event.setdefault("stage", stage)
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_stage,
    ]
    rendering: list[Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
        if settings.log_format == "json"
        else [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "lines": {
                    "()": structlog.stdlib.ProcessorFormatter,
                    "foreign_pre_chain": [*shared, structlog.stdlib.ExtraAdder()],
                    "processors": [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
                }
            },
            "handlers": {
                "stdout": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "lines"}
            },
            "root": {"handlers": ["stdout"], "level": settings.log_level.upper()},
            # At debug level grpc logs every turn of its loop.
            "loggers": {"grpc": {"level": "INFO" if settings.log_level == "debug" else "NOTSET"}},
        }
    )
    logging.captureWarnings(True)
