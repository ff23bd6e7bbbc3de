"""Texts as they are compared: exact, token-f1, rouge-l, phoneme, and what hostile answers cost."""

import random

import pytest

from models.scoring.registry import SCORERS, scorer
from models.scoring.scorer import MOST_CHARACTERS, Reference
from models.scoring.sequences import MOST_WORDS, common, edits
from models.scoring.texts import exact, phoneme, rouge_l, token_f1
from models.scoring.words import compatible, squad_words, unfenced


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("The  Blue\nWhale.", "blue whale"),
        ('"Blue whale"', "Blue whale!"),
        ("**Blue whale**.", "blue whale"),
        ("\u201cBlue whale\u201d", "blue whale"),
        ("rock\u2019n\u2019roll", "rock'n'roll"),
        ("STRASSE", "stra\u00dfe"),
        ("cafe\u0301", "caf\u00e9"),
        ("\uff28\uff12\uff2f", "h2o"),
        ("\u00bfs\u00ed", "\u00bfSi\u0301"),
        ("\u300c\u9752\u3044\u300d\u3002", "\u9752\u3044"),
        ("", "  "),
    ],
)
def test_exact_takes_for_the_same_what_a_reader_does(answer: str, reference: str) -> None:
    assert exact(answer, reference) == 1.0
    assert exact(reference, answer) == 1.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("-5", "5"),
        (".5", "5"),
        ("3.5", "35"),
        ("C++", "C"),
        ("5%", "5"),
        ("[1, 2]", "(1, 2)"),
        ("5'", '5"'),
        ("a b c", "b c"),
        ("?", ""),
        ("The", "A"),
        ("sch\u00f6n", "schon"),
        ("blue whale", "bluewhale"),
    ],
)
def test_exact_keeps_apart_what_differs(answer: str, reference: str) -> None:
    assert exact(answer, reference) == 0.0
    assert exact(reference, answer) == 0.0


def test_token_f1_is_squads() -> None:
    # The official script on these: 2 of 3 and 2 of 2 words; "a" and punctuation do not count.
    assert token_f1("a big, red house", "The red house!") == pytest.approx(0.8)
    assert token_f1("red red", "red") == pytest.approx(2 / 3)
    assert token_f1("well-known", "wellknown") == 1.0
    assert token_f1("", "the") == 1.0
    assert token_f1("house", "") == 0.0
    assert token_f1("green", "blue") == 0.0


def test_words_of_other_scripts() -> None:
    assert squad_words("\u9752\u3044\u9be8\u3002OK") == ["\u9752", "\u3044", "\u9be8", "ok"]
    assert squad_words("\u0928\u0940\u0932\u093e \u0930\u0902\u0917\u0964") == [
        "\u0928\u0940\u0932\u093e",
        "\u0930\u0902\u0917",
    ]


def test_rouge_l_counts_words_in_their_order() -> None:
    assert rouge_l("police killed the gunman", "police kill the gunman") == pytest.approx(0.75)  # Lin 2004, section 3.1
    assert rouge_l("the gunman kill police", "police kill the gunman") == pytest.approx(0.5)
    assert rouge_l("well-known", "well known") == 1.0
    assert rouge_l("", "word") == 0.0
    assert rouge_l("...", "") == 1.0


def test_phoneme_is_one_minus_the_error_rate() -> None:
    assert phoneme("K AE1 T", "K AE1 T") == 1.0
    assert phoneme("K AE0 T", "K AE1 T") == pytest.approx(2 / 3)
    assert phoneme("K  AE1\tT S", "K AE1 T") == pytest.approx(2 / 3)
    assert phoneme("A B C D E F G", "K AE1 T") == 0.0
    assert phoneme("", "K") == 0.0
    assert phoneme("", "") == 1.0
    assert phoneme("k", "K") == 0.0


def slow_edits(first: list[str], second: list[str]) -> int:
    row = list(range(len(second) + 1))
    for i, one in enumerate(first, 1):
        row, above = [i], row
        for j, other in enumerate(second, 1):
            row.append(min(row[-1] + 1, above[j] + 1, above[j - 1] + (one != other)))
    return row[-1]


def slow_common(first: list[str], second: list[str]) -> int:
    row = [0] * (len(second) + 1)
    for one in first:
        row, above = [0], row
        for j, other in enumerate(second, 1):
            row.append(above[j - 1] + 1 if one == other else max(row[-1], above[j]))
    return row[-1]


def test_edits_and_common_are_those_of_the_whole_table() -> None:
    drawn = random.Random(7)
    for _ in range(400):
        first, second = (drawn.choices("abcd", k=drawn.randrange(90)) for _ in range(2))
        assert edits(first, second) == slow_edits(first, second)
        assert common(first, second) == slow_common(first, second)


def test_words_beyond_the_most_agree_with_nothing() -> None:
    words = ["x"] * (MOST_WORDS + 5)
    assert edits(words, words) == 10
    assert common(words, words) == MOST_WORDS


def test_composing_word_by_word_is_composing_the_whole() -> None:
    text = "e\u0301 \uac00\u11a8 \ufb01n \u2460 " * 50
    assert compatible(text) == "\u00e9 \uac01 fin 1 " * 49 + "\u00e9 \uac01 fin 1"


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ("```sql\nSELECT 1\n```", "SELECT 1"),
        (" ```\n{}\n ``` ", "{}"),
        ("SELECT 1", "SELECT 1"),
        ("```\na\n```\nb\n```", "```\na\n```\nb\n```"),
        ("```\nopen", "```\nopen"),
        ("```", "```"),
    ],
)
def test_fences_go_where_they_are_all_there_is(text: str, inner: str) -> None:
    assert unfenced(text) == inner


HOSTILE = {
    "marks": "a" + "\u0315\u0300" * (MOST_CHARACTERS // 2 - 1),
    "lists": "[" * MOST_CHARACTERS,
    "objects": '{"a":' * (MOST_CHARACTERS // 5),
    "digits": "9" * MOST_CHARACTERS,
    "arabic digits": "\u0663" * MOST_CHARACTERS,
    "fractions": "1/" * (MOST_CHARACTERS // 2),
    "exponent": "1e" + "9" * 300,
    "nul": "\0" * MOST_CHARACTERS,
    "surrogates": "\ud800" * MOST_CHARACTERS,
    "quotes": '"' * MOST_CHARACTERS,
    "fence": "```\n" + " " * (MOST_CHARACTERS - 5) + "x",
    "leads": "answer is " * (MOST_CHARACTERS // 10),
    "words": "x z " * (MOST_CHARACTERS // 4),
    "megabytes": "[" * 3_000_000,
}


@pytest.mark.timeout(10)  # each is far below a second; what takes the square of the length is far above
@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("name", [name for name in SCORERS if name not in {"judge", "sql-execution"}])
def test_a_hostile_answer_is_an_answer(name: str, hostile: str) -> None:
    reference = {"number": "7", "json": "[7]", "choice": "Oslo"}.get(name, "7 8 " * 5_000)
    grades = scorer(name)([HOSTILE[hostile]], [Reference("", (reference,), ("Oslo", "Rome"))])
    assert grades.tolist() == [0.0]
