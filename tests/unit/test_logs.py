"""Logs: one object a line, and never what a request said."""

import json
import logging

import pytest

from service.settings import EdgeSettings
from service.telemetry.logs import configure_logs


def fail(text: str) -> None:
    raise ValueError(f"the model failed on {len(text)} characters")


@pytest.mark.parametrize("kind", ["json", "text"])
def test_a_traceback_tells_where_and_not_what_was_said(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(EdgeSettings(log_format=kind), "edge")  # type: ignore[arg-type]
    said = "a private sentence"
    try:
        fail(said)
    except ValueError:
        logging.getLogger("service.test").exception("request failed", extra={"request_id": "id-1"})
    printed = capsys.readouterr().err
    assert "the model failed" in printed
    assert "test_logs.py" in printed
    assert "id-1" in printed
    assert "private" not in printed


def test_json_logs_are_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(EdgeSettings(log_format="json"), "edge")
    logging.getLogger("service.test").info("one\ntwo", extra={"count": 3})
    logging.getLogger("uvicorn.error").warning("three")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["one\ntwo", "three"]
    assert lines[0]["service"] == "edge"
    assert lines[0]["count"] == 3


def test_a_terminal_is_told_nothing_by_others(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(EdgeSettings(log_format="text"), "edge")
    logging.getLogger("service.test").warning("field \x1b[2J of %s", "\u202egate", extra={"why": "\x07bell\nline"})
    printed = capsys.readouterr().err
    assert "field \\x1b[2J of \\u202egate" in printed
    assert "\\x07bell\\nline" in printed
    assert not any(character in printed for character in "\x1b\x07\u202e")
