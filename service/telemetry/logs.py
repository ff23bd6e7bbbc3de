"""Structured logs: one JSON object a line, or readable text on a terminal. Never a token, never an input text."""

import logging
import sys

import structlog

from models.printing import printable
from service.settings import EdgeSettings, LargeSettings


def configure_logs(settings: EdgeSettings | LargeSettings, service: str) -> None:
    """Send everything, uvicorn's own lines included, through one formatter to stderr."""
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())

    def add_service(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["service"] = service
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_service,
    ]
    # Tracebacks without local variables: these hold the texts of requests, and now and then a token.
    without_locals = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    rendered: list[structlog.typing.Processor] = (
        [structlog.processors.ExceptionRenderer(without_locals), structlog.processors.JSONRenderer()]
        if as_json
        else [
            _escaped,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.WARNING)
    for noisy in ("httpx", "aiohttp", "filelock", "transformers"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _escaped(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """What others have written, for a terminal; JSON escapes it by itself."""
    return {key: printable(value) if isinstance(value, str) else value for key, value in event.items()}
