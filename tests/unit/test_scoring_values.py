"""Choices, numbers and JSON, read from what a model says."""

from decimal import Decimal

import pytest

from models.errors import InputError
from models.scoring.amounts import last_amount, same_number
from models.scoring.choices import choose, right_choice
from models.scoring.json_values import same_json
from models.scoring.scorer import Reference

CITIES = ("Paris", "Rome", "the Seine", "Oslo")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("Rome", 1),
        ("rome.", 1),
        ("Seine", 2),
        ("B", 1),
        (" (b) ", 1),
        ("b)", 1),
        ("**B**", 1),
        ("answer2", 1),
        ("Option 2.", 1),
        ("choice d", 3),
        ("B) Rome", 1),
        ("B. Rome, for it lies on the Tiber", 1),
        ("(B) because it lies on the Tiber", 1),
        ("B\nIt lies on the Tiber.", 1),
        ("The answer is B.", 1),
        ("So the correct answer is: **B**", 1),
        ("The answer is B because it lies on the Tiber", 1),
        ("The answer is Rome.", 1),
        ("The answer is b) Rome", 1),
        ("Answer: answer2: Rome", 1),
        ("\uff22", 1),
    ],
)
def test_an_answer_names_a_choice(text: str, place: int) -> None:
    assert choose(text, CITIES) == place


@pytest.mark.parametrize(
    "text",
    [
        "",
        "E",
        "(e)",
        "answer5",
        "answer0",
        "2",
        "Berlin",
        "not Rome",
        "Rome or Oslo",
        "B or C",
        "A\nB",
        "answer1 or answer2",
        "(a) and (b)",
        "B) Paris",
        "A city",
        "The answer is B. The answer is C.",
        "the answer is a, b or c",
        "It could be Rome",
        "\0",
    ],
)
def test_an_answer_that_names_none_or_several_is_none(text: str) -> None:
    assert choose(text, CITIES) is None


def test_a_choices_own_text_comes_before_a_label() -> None:
    assert choose("B", ("B", "A")) == 0
    assert choose("answer2", ("answer2", "answer1")) == 0
    assert choose("4", ("2", "4")) == 1
    assert choose("one\ntwo", ("one", "one two")) == 1


def test_two_choices_of_one_text_are_none() -> None:
    assert choose("Rome", ("Rome", "rome")) is None
    assert choose("B", ("Rome", "rome")) == 1


def test_a_reference_is_read_as_an_answer_is() -> None:
    assert right_choice("(b)", Reference("", ("Rome",), CITIES)) == 1.0
    assert right_choice("Rome", Reference("", ("answer2",), CITIES)) == 1.0
    assert right_choice("Oslo", Reference("", ("answer2",), CITIES)) == 0.0
    assert right_choice("Oslo", Reference("", ("answer2", "D"), CITIES)) == 1.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5.", "5"),
        ("$5", "5"),
        ("-$5.50", "-5.5"),
        ("$-5", "-5"),
        ("1,234.5", "1234.5"),
        ("US$ 1,000,000.", "1000000"),
        ("1'234", "1234"),
        ("1\u202f234", "1234"),
        ("1{,}234", "1234"),
        ("-3/4", "-0.75"),
        ("1 3/4", "1.75"),
        ("1\u00bd", "1.5"),
        (r"\frac{3}{4}", "0.75"),
        ("\u22123", "-3"),
        ("x=-4.50e2", "-450"),
        ("1.5 x 10^3", "1500"),
        ("1.5\u00d710\u207b\u00b3", "0.0015"),
        ("10\u2076", "1000000"),
        (".5", "0.5"),
        ("3-4", "4"),
        ("2 apples and 3 pears: 5 fruits", "5"),
        ("1,2,3", "3"),
        ("25 m\u00b2 of H2O, see answer2", "25"),
        ("\u7b54\u6848\u662f5", "5"),
        ("\u0663\u066b\u0665", "3.5"),
        ("\uff14\uff12", "42"),
        (r"\boxed{42}", "42"),
        ("#### 72", "72"),
    ],
)
def test_the_last_number_of_a_text(text: str, value: str) -> None:
    found = last_amount(text)
    assert found is not None
    assert found.value == Decimal(value)


@pytest.mark.parametrize(
    "text", ["", "five", "H2O", "3/0", "9" * 100_000, "1e999999999", "1e-999999999", "2^10", "nan"]
)
def test_what_is_no_amount(text: str) -> None:
    assert last_amount(text) is None


@pytest.mark.parametrize(
    ("answer", "reference", "grade"),
    [
        ("0.3333333", "1/3", 1),
        ("0.33333", "1/3", 0),
        ("1234567", "1234568", 0),  # whole numbers are equal or are not
        ("1234567.0", "1,234,567", 1),
        ("0", "0.0", 1),
        ("0.0000001", "0", 0),
        ("-5", "5", 0),
        ("50%", "50", 1),
        ("50%", "0.5", 1),
        ("0.5", "50 percent", 1),
        ("50", "50 %", 1),
        ("5%", "50%", 0),
        ("1e400", "1e401", 0),
        ("none", "5", 0),
    ],
)
def test_numbers_are_compared_by_value(answer: str, reference: str, grade: float) -> None:
    assert same_number(answer, reference) == grade


def test_a_long_number_equals_itself_to_its_last_digit() -> None:
    assert same_number("9" * 300, "9" * 300) == 1.0
    assert same_number("9" * 299 + "8", "9" * 300) == 0.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ('{"b": [1, 2.0], "a": null}', '{"a":null,"b":[1.0,2]}'),
        ("```json\n[1e2]\n```", "[100]"),
        ('"\\u00e9"', '"\u00e9"'),
        (" true ", "true"),
        ("9" * 50_000, "9" * 50_000),
    ],
)
def test_json_is_the_same_however_it_is_written(answer: str, reference: str) -> None:
    assert same_json(answer, reference) == 1.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("[1, 2]", "[2, 1]"),
        ("[1]", "[true]"),
        ('["1"]', "[1]"),
        ('{"a": 1}', '{"a": 1, "b": 2}'),
        ('{"a": 1, "a": 1}', '{"a": 1}'),
        ("It is [1]", "[1]"),
        ("[1e99999999999999999999]", "[1]"),
        ("NaN", "null"),
        ("[" * 101 + "]" * 101, "[]"),
        ("", "null"),
    ],
)
def test_json_that_differs_or_is_none(answer: str, reference: str) -> None:
    assert same_json(answer, reference) == 0.0


@pytest.mark.parametrize(
    "reference", ["", "{'a': 1}", '{"a": 1, "a": 2}', "Infinity", "[" * 50_000, "[" * 101 + "]" * 101]
)
def test_a_reference_that_is_no_json_is_an_error(reference: str) -> None:
    with pytest.raises(InputError, match="the reference is not JSON"):
        same_json("1", reference)
