"""The question to an LLM, and the label in its answer: the rule of spelling, JSON, the score, and nothing fuzzy."""

import json
import math

import pytest

from models.llm_labels import LabelPrompt, NoLabel, score_of

LABELS = ("card declined", "pto_balance", "Weather", "what is your name")
PROMPT = LabelPrompt(LABELS, {"Weather": "about rain or sun"})


def test_the_question_has_every_label_its_description_and_the_text_as_it_is() -> None:
    text = "{labels} and\n{text} in ß 🐟"
    question = PROMPT.question(text)
    assert question.count(text) == 1
    assert question.endswith(f"Text:\n{text}")
    assert "- card declined\n- pto_balance\n- Weather: about rain or sun\n- what is your name" in question
    own = LabelPrompt(LABELS, template="{text}\nWhich of\n{labels}\nis it?")
    assert own.question("x").startswith("x\nWhich of\n- card declined")


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("card declined", "card declined"),
        (" Card_Declined.\n", "card declined"),
        ("`PTO-balance`", "pto_balance"),
        ('"weather"', "Weather"),
        ("**Weather**", "Weather"),
        ('{"label": "pto_balance"}', "pto_balance"),
        ('\n{"label":"PTO balance", "why": "x"}', "pto_balance"),
        ("what is  your name", "what is your name"),
    ],
)
def test_spellings_of_a_label(answer: str, label: str) -> None:
    assert PROMPT.read(answer) == label


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("it is about the weather", "foreign-label"),
        ("Weather, or card declined", "foreign-label"),
        ("weathre", "foreign-label"),
        ("label: Weather", "foreign-label"),
        ('{"label": "snow"}', "foreign-label"),
        ('{"label": "Weather"', "json"),
        ('{"labels": ["Weather"]}', "schema"),
        ('{"label": 3}', "schema"),
        ("{" * 100_000, "json"),
    ],
)
def test_what_is_no_label_is_not_guessed(answer: str, fault: str) -> None:
    with pytest.raises(NoLabel) as raised:
        PROMPT.read(answer)
    assert raised.value.fault == fault
    assert "weath" not in str(raised.value).lower(), "an LLM may repeat the text"


def test_what_cannot_be_told_apart_is_refused() -> None:
    with pytest.raises(ValueError, match="'a b' and 'A_b' are spelled alike"):
        LabelPrompt(("a b", "c", "A_b"))
    with pytest.raises(ValueError, match="of 'z', which is no label"):
        LabelPrompt(("a", "b"), {"z": "?"})
    for template in ("{labels}", "{text}{text}{labels}"):
        with pytest.raises(ValueError, match=r"the template needs \{text\} once"):
            LabelPrompt(("a", "b"), template=template)


def test_the_schema_allows_the_labels_alone() -> None:
    assert PROMPT.schema()["properties"]["label"]["enum"] == list(LABELS)


def test_the_score_is_the_product_of_the_labels_tokens() -> None:
    half, quarter = math.log(0.5), math.log(0.25)
    whole = '{"label": "pto_balance"}'
    tokens = [('{"label', -3.0), ('": "', -2.0), ("pto", half), ("_balance", quarter), ('"}', -1.0)]
    assert "".join(token for token, _ in tokens) == whole
    assert score_of(whole, tokens) == pytest.approx(0.125)
    assert score_of(" Weather\n", [(" ", -5.0), ("Wea", half), ("ther", 0.0), ("\n", -9.0)]) == pytest.approx(0.5)
    # A token that is of the label in part counts.
    assert score_of('{"label":"a"}', [('{"label":', -1.0), ('"a', half), ('"}', -1.0)]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "tokens",
    [
        [],
        [("Wea", -0.1)],  # not the whole answer
        [("Weather", float("nan"))],
        [("Weather", float("-inf"))],
        [("Weather", 0.7)],
    ],
)
def test_where_the_tokens_do_not_say_there_is_no_score(tokens: list[tuple[str, float]]) -> None:
    assert score_of("Weather", tokens) is None


def test_a_label_with_quotes_survives_json() -> None:
    prompt = LabelPrompt(('say "hi"', "other\\thing"))
    for label in prompt.labels:
        assert prompt.read(json.dumps({"label": label})) == label
