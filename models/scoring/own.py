"""A scorer of the user's own: FILE.py:FUNCTION, where the function takes (answer, reference) and returns a grade."""

import sys
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from models.errors import InputError
from models.files import MIB, read_bounded
from models.printing import printable
from models.scoring.scorer import Scorer, best


def own_scorer(where: str) -> Scorer:
    """The scorer that FILE.py:FUNCTION names; the file runs, and its folder is not searched for others.

    Raises InputError where the file or the function cannot be used; grading does, naming the row, where the function
    raises or returns anything but a number in [0, 1].
    """
    file, _, name = where.rpartition(":")
    function = getattr(_run(Path(file)), name, None)
    if not callable(function):
        raise InputError(f"{file} has no function {printable(name, 60)!r}: write one that takes (answer, reference)")
    return Scorer(where, graded=True, grade=best(_checked(where, function)))


def _checked(where: str, function: Callable[[str, str], Any]) -> Callable[[str, str], float]:
    def grade(answer: str, reference: str) -> float:
        try:
            value = function(answer, reference)
        except Exception as error:  # whatever a function of theirs may raise
            raise InputError(f"{where} raises {_told(error)}") from error
        if not isinstance(value, Real | np.bool_):
            raise InputError(f"{where} returns {type(value).__name__}, not a number in [0, 1]")
        if not 0 <= float(value) <= 1:
            raise InputError(f"{where} returns {float(value):g}, which does not lie in [0, 1]")
        return float(value)

    return grade


def _run(path: Path) -> ModuleType:
    """The file as a module that no `import` finds. Raises InputError."""
    try:
        source = read_bounded(path, MIB)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    module = ModuleType(f"gatekeeper own scorer {path.absolute()}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)  # noqa: S102  that is what the user asks for
    except (Exception, SystemExit) as error:
        raise InputError(f"{path} cannot be run: {_told(error)}") from error
    return module


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {printable(str(error), 200)}"
