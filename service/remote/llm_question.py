"""The question that an LLM is asked about a text: the bundle's labels, and what files of the operator add to it."""

from collections.abc import Sequence
from pathlib import Path

from models.files import MIB, read_bounded, read_json
from models.llm_labels import TEMPLATE, LabelPrompt
from service.errors import StartupError


def label_prompt(labels: Sequence[str], descriptions: Path | None, template: Path | None) -> LabelPrompt:
    """Raises StartupError for a file that cannot be read or does not fit the labels."""
    described = {} if descriptions is None else _descriptions(descriptions)
    text = TEMPLATE
    if template is not None:
        try:
            text = read_bounded(template, MIB).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StartupError(f"GATEKEEPER_REMOTE_PROMPT: {template} cannot be read: {error}") from None
    try:
        return LabelPrompt(labels, described, text)
    except ValueError as error:
        raise StartupError(f"the question to the LLM cannot be made: {error}") from None


def _descriptions(path: Path) -> dict[str, str]:
    try:
        found = read_json(path, MIB)
    except (OSError, ValueError) as error:
        raise StartupError(f"GATEKEEPER_REMOTE_DESCRIPTIONS: {path} cannot be read: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(text, str) and "\n" not in text for text in found.values()):
        raise StartupError(
            f'GATEKEEPER_REMOTE_DESCRIPTIONS: {path} is no JSON object of labels to lines: {{"label": "what it means"}}'
        )
    return found
