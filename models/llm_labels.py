"""An LLM as a classifier: what it is asked about a text, and how its answer becomes a label. Pure, no I/O.

The edge uses it online (service/remote/openai_wire.py) and the job offline, so that both mean the same.

An answer is a label when, but for white space, quotes, a full stop at the end, the case of letters, and `_` or `-` in
the place of a space, it is spelled as exactly one label is. Nothing else is guessed: "it is about cards" is no label.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LABELS_PLACE, TEXT_PLACE = "{labels}", "{text}"
TEMPLATE = """Classify the text. Answer with exactly one of the labels below, spelled as it is there, and nothing else.

Labels:
{labels}

Text:
{text}"""
SCHEMA_NAME = "label"
_FIELD = "label"
_AROUND = " \t\r\n\"'`*"
_JOINTS = re.compile(r"[\s_-]+")


class NoLabel(ValueError):
    """The answer is none of the labels. `fault` is one word for what it is instead."""

    def __init__(self, fault: str, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault


@dataclass(frozen=True)
class LabelPrompt:
    """Which labels there are and how they are asked for. descriptions: of some of the labels, one line each.

    Raises ValueError for a template without {text} or {labels}, and for labels that the rule of spelling cannot tell
    apart.
    """

    labels: Sequence[str]
    descriptions: Mapping[str, str] = field(default_factory=dict)
    template: str = TEMPLATE
    _by_spelling: dict[str, str] = field(init=False, repr=False, compare=False)
    _shown: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for place in (LABELS_PLACE, TEXT_PLACE):
            if self.template.count(place) != 1:
                raise ValueError(f"the template needs {place} once")
        by_spelling: dict[str, str] = {}
        for label in self.labels:
            other = by_spelling.setdefault(spelling(label), label)
            if other != label:
                raise ValueError(
                    f"the labels {other!r} and {label!r} are spelled alike: an LLM's answer could be either"
                )
        unknown = next((label for label in self.descriptions if label not in by_spelling.values()), None)
        if unknown is not None:
            raise ValueError(f"a description is of {unknown!r}, which is no label")
        lines = (
            f"- {label}: {self.descriptions[label]}" if label in self.descriptions else f"- {label}"
            for label in self.labels
        )
        object.__setattr__(self, "_by_spelling", by_spelling)
        object.__setattr__(self, "_shown", "\n".join(lines))

    def question(self, text: str) -> str:
        """The user's turn about one text."""
        before, after = self.template.split(TEXT_PLACE)
        return f"{before.replace(LABELS_PLACE, self._shown)}{text}{after.replace(LABELS_PLACE, self._shown)}"

    def schema(self) -> dict[str, Any]:
        """The JSON schema of an answer, for an upstream that holds its answers to one."""
        one = {"type": "string", "enum": list(self.labels)}
        return {"type": "object", "properties": {_FIELD: one}, "required": [_FIELD], "additionalProperties": False}

    def read(self, answer: str) -> str:
        """The label in an answer, as JSON of the schema or by itself. Raises NoLabel."""
        said = answer.strip()
        if not said:
            raise NoLabel("empty", "the answer is empty")
        if said.startswith("{"):
            said = _of_json(said)
        found = self._by_spelling.get(spelling(said))
        if found is None:
            raise NoLabel("foreign-label", "the answer is none of the labels")
        return found


def spelling(label: str) -> str:
    """What two spellings of one label have in common."""
    bare = label.strip(_AROUND).removesuffix(".").strip(_AROUND)
    return _JOINTS.sub(" ", bare).strip().casefold()


def _of_json(said: str) -> str:
    try:
        document = json.loads(said)
    except (ValueError, RecursionError):
        raise NoLabel("json", "the answer begins as JSON and is none") from None
    value = document.get(_FIELD) if isinstance(document, dict) else None
    if not isinstance(value, str):
        raise NoLabel("schema", f"the answer's JSON has no {_FIELD!r}")
    return value


def score_of(answer: str, tokens: Sequence[tuple[str, float]]) -> float | None:
    """The probability of the label in an answer, (0, 1]: the product of its tokens'; None where they do not say.

    tokens: each of the answer's, with its log-probability. Of JSON only the tokens of the label count: the rest is
    given by the schema.
    """
    if not tokens or "".join(token for token, _ in tokens) != answer:
        return None
    begin, end = _label_span(answer)
    total, position = 0.0, 0
    for token, log_probability in tokens:
        after = position + len(token)
        if position < end and after > begin:
            if not math.isfinite(log_probability) or log_probability > 1e-6:
                return None
            total += min(log_probability, 0.0)
        position = after
    return math.exp(total)


def _label_span(answer: str) -> tuple[int, int]:
    """(begin, end) of the label within the answer."""
    found = re.search(rf'"{_FIELD}"\s*:\s*"((?:[^"\\]|\\.)*)"', answer)
    if found is not None and answer.lstrip().startswith("{"):
        return found.span(1)
    bare = answer.strip()
    begin = answer.index(bare) if bare else 0
    return begin, begin + len(bare)
