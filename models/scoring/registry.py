"""Scorers by name."""

from collections.abc import Callable
from dataclasses import dataclass

from models.errors import InputError
from models.printing import printable
from models.scoring.amounts import same_number
from models.scoring.choices import right_choice
from models.scoring.json_values import same_json
from models.scoring.judge import Judge, judge_scorer
from models.scoring.own import own_scorer
from models.scoring.scorer import Scorer, best, item_by_item
from models.scoring.sql import SqlLimits, sql_scorer
from models.scoring.texts import exact, phoneme, rouge_l, token_f1


@dataclass(frozen=True)
class Needs:
    """What some scorers need, and others do not look at."""

    judge: Judge | None = None
    sql: SqlLimits | None = None


def _judged(needs: Needs) -> Scorer:
    if needs.judge is None:
        raise InputError("the scorer judge needs a language model that judges: give --judge")
    return judge_scorer(needs.judge)


SCORERS: dict[str, Callable[[Needs], Scorer]] = {
    "exact": lambda _: Scorer("exact", graded=False, grade=best(exact)),
    "choice": lambda _: Scorer("choice", graded=False, grade=item_by_item(right_choice)),
    "number": lambda _: Scorer("number", graded=False, grade=best(same_number)),
    "json": lambda _: Scorer("json", graded=False, grade=best(same_json)),
    "sql-execution": lambda needs: sql_scorer(needs.sql or SqlLimits()),
    "rouge-l": lambda _: Scorer("rouge-l", graded=True, grade=best(rouge_l)),
    "token-f1": lambda _: Scorer("token-f1", graded=True, grade=best(token_f1)),
    "phoneme": lambda _: Scorer("phoneme", graded=True, grade=best(phoneme)),
    "judge": _judged,
}


def scorer(name: str, *, judge: Judge | None = None, sql: SqlLimits | None = None) -> Scorer:
    """The scorer of this name, or the function that FILE.py:FUNCTION names. Raises InputError.

    judge: what the scorer judge asks. sql: the limits of sql-execution, in the place of its own.
    """
    if name in SCORERS:
        return SCORERS[name](Needs(judge, sql))
    if ".py:" in name:
        return own_scorer(name)
    raise InputError(
        f"unknown scorer {printable(name, 60)!r}; there is: {', '.join(SCORERS)}, and FILE.py:FUNCTION for your own"
    )
