"""Scorers: grades by name, the best of several references, errors that name the row, and a function of the user's."""

from pathlib import Path

import numpy as np
import pytest

from models.errors import InputError
from models.scoring.registry import SCORERS, scorer
from models.scoring.scorer import MOST_CHARACTERS, Reference

QUESTION = "Which city?"


def of(*answers: str) -> Reference:
    return Reference(QUESTION, answers)


def test_grades_are_an_array_of_one_for_each_answer() -> None:
    grades = scorer("exact")(["Oslo", "Rome", "oslo."], [of("Oslo")] * 3)
    assert grades.dtype == np.float64
    assert grades.tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("name", [name for name in SCORERS if name != "judge"])
def test_of_no_answers_there_are_no_grades(name: str) -> None:
    assert scorer(name)([], []).shape == (0,)


def test_the_best_of_several_references_counts() -> None:
    assert scorer("exact")(["Rome"], [of("Oslo", "Rome")]).tolist() == [1.0]
    assert scorer("token-f1")(["a red house"], [of("blue", "red car", "red house")]).tolist() == [1.0]
    assert scorer("number")(["3"], [of("2", "3")]).tolist() == [1.0]


def test_names_and_kinds() -> None:
    graded = {name for name in SCORERS if name != "judge" and scorer(name).graded}
    assert graded == {"rouge-l", "token-f1", "phoneme"}
    assert all(scorer(name).name == name for name in SCORERS if name != "judge")


def test_an_unknown_name_lists_all() -> None:
    with pytest.raises(InputError, match=r"unknown scorer 'bleu'; there is: exact, choice, .*judge, and FILE.py:FUNC"):
        scorer("bleu")


def test_an_answer_that_has_run_away_is_wrong() -> None:
    longest = "x" * MOST_CHARACTERS
    assert scorer("exact")([longest, longest + "x"], [of(longest)] * 2).tolist() == [1.0, 0.0]


def test_a_reference_without_an_answer_or_too_long_names_its_row() -> None:
    with pytest.raises(InputError, match="row 2: there is no reference answer"):
        scorer("exact")(["", ""], [of("x"), of()])
    with pytest.raises(InputError, match="row 1: its reference has more than 100000 characters"):
        scorer("exact")([""], [of("x" * (MOST_CHARACTERS + 1))])


def test_as_many_references_as_answers() -> None:
    with pytest.raises(ValueError, match="zip"):
        scorer("exact")(["x", "y"], [of("x")])


@pytest.mark.parametrize(
    ("name", "reference", "says"),
    [
        ("number", of("none"), "row 2: the reference 'none' has no number"),
        ("json", of("{"), "row 2: the reference is not JSON"),
        ("choice", of("Oslo"), "row 2: the scorer choice needs the choices"),
        ("choice", Reference(QUESTION, ("Paris",), ("Oslo", "Rome")), "row 2: the reference 'Paris' names none"),
        ("sql-execution", of("SELECT 1"), "row 2: the scorer sql-execution needs a database"),
    ],
)
def test_a_reference_that_cannot_be_used_names_its_row(name: str, reference: Reference, says: str) -> None:
    good = {"choice": Reference(QUESTION, ("A",), ("Oslo", "Rome"))}.get(name, of("1"))
    rows = [reference, reference] if name == "sql-execution" else [good, reference]
    with pytest.raises(InputError, match=says if name != "sql-execution" else says.replace("row 2", "row 1")):
        scorer(name)(["1", "1"], rows)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "grades.py"
    path.write_text(
        "from dataclasses import dataclass\n"
        "import numpy as np\n"
        "@dataclass\nclass Kept:\n    text: 'str'\n"
        "def same_length(answer, reference):\n    return len(Kept(answer).text) == len(reference)\n"
        "def half(answer, reference):\n    return np.float32(0.5)\n"
        "def fails(answer, reference):\n    return {}[answer]\n"
        "def too_much(answer, reference):\n    return 2 if answer == 'b' else 1\n"
        "def nothing(answer, reference):\n    pass\n"
        "def nan(answer, reference):\n    return float('nan')\n"
        "NUMBER = 3\n"
    )
    return path


def test_a_function_of_ones_own(own: Path) -> None:
    graded = scorer(f"{own}:same_length")
    assert graded.graded
    assert graded.name == f"{own}:same_length"
    assert graded(["ab", "abc"], [of("xy"), of("xy")]).tolist() == [1.0, 0.0]
    assert scorer(f"{own}:half")(["a"], [of("b")]).tolist() == [0.5]


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("fails", "row 1: .*grades.py:fails raises KeyError: 'a'"),
        ("too_much", r"row 2: .*returns 2, which does not lie in \[0, 1\]"),
        ("nothing", r"row 1: .*returns NoneType, not a number in \[0, 1\]"),
        ("nan", "row 1: .*returns nan, which does not lie"),
    ],
)
def test_what_a_function_of_ones_own_does_wrong_names_the_row(own: Path, function: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        scorer(f"{own}:{function}")(["a", "b"], [of("x"), of("x")])


def test_a_file_of_ones_own_that_cannot_be_used(own: Path) -> None:
    for function in ("missing", "NUMBER", ""):
        with pytest.raises(InputError, match=f"has no function '{function}'"):
            scorer(f"{own}:{function}")
    with pytest.raises(InputError, match=r"nowhere.py cannot be read: No such file"):
        scorer(f"{own.parent / 'nowhere.py'}:f")
    own.write_text("def f(:")
    with pytest.raises(InputError, match=r"grades.py cannot be run: SyntaxError"):
        scorer(f"{own}:f")
    own.write_text("import beside")
    own.with_name("beside.py").write_text("")
    with pytest.raises(InputError, match="ModuleNotFoundError: No module named 'beside'"):
        scorer(f"{own}:f")
    own.write_text("raise SystemExit(3)")
    with pytest.raises(InputError, match="SystemExit: 3"):
        scorer(f"{own}:f")
