"""docs/settings.md from service/settings.py.

python -m docs.write_settings
"""

import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from service.settings import PACKAGED_BUNDLES, EdgeSettings, LargeSettings, variable_of

PAGE = Path(__file__).resolve().parent / "settings.md"
HEAD = """# Settings

What needs a restart. Made from `service/settings.py` by `make docs`. What may change while a service runs is the
[policy](how-to/policy.md#change-the-policy).

A service reads its settings once, from flags and from variables of the environment; a flag wins. `gatekeeper serve`
has the flags `--bundle`, `--host`, `--port` and `--remote-url`, and `gatekeeper serve-large` the first three.
`gatekeeper up` starts both services, passes the variables on, and has `--port` and `--large-port`. An empty variable is
unset; [where it runs](operations.md#where-it-runs) says what else becomes of a variable.
"""
COMMANDS = """## Of the commands

| variable | what it says |
| --- | --- |
| `GATEKEEPER_DATA_DIR` | the folder that holds the named data sets, for `tune`, `calibrate`, `evaluate` and `compare` |
| `GATEKEEPER_CACHE_DIR` | where `gatekeeper fetch` puts language models, and all look for them; default: \
`XDG_CACHE_HOME/gatekeeper`, else `~/.cache/gatekeeper` |
| `GATEKEEPER_API_KEY` | the API key that `gatekeeper demo` and `gatekeeper evaluate --endpoint` send |
| `GATEKEEPER_LOAD_KEY` | the API key that the load test sends |
| `GATEKEEPER_LOAD_DATA` | examples of your own for the load test, as its `--data` |
"""


def page() -> str:
    """The whole page."""
    edge, large = _rows(EdgeSettings), _rows(LargeSettings)
    # What a service has a variable or a default of its own for is told with that service.
    both = [row for row in edge if row in large]
    parts = [
        HEAD,
        _table("Of the edge", [row for row in edge if row not in both]),
        _table("Of the large-model service", [row for row in large if row not in both]),
        _table("Of both services", both),
        COMMANDS,
    ]
    return "\n".join(parts)


def _rows(settings: type[BaseModel]) -> list[str]:
    """One for each field, what the class itself declares before what it inherits."""
    fields = settings.model_fields.items()
    return [_row(name, field) for name, field in sorted(fields, key=lambda one: one[0] not in settings.__annotations__)]


def _table(title: str, rows: list[str]) -> str:
    head = ["| variable | default | values | what it says |", "| --- | --- | --- | --- |"]
    return "\n".join([f"## {title}\n", *head, *rows, ""])


def _row(name: str, field: FieldInfo) -> str:
    about = (field.description or "").replace("|", "\\|")
    variable = variable_of(str(field.validation_alias or name))
    return f"| `{variable}` | {_default(name, field)} | {_values(name, field)} | {about} |"


def _default(name: str, field: FieldInfo) -> str:
    value: Any = field.default
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        value = ", ".join(str(one).removesuffix("/") for one in value)
    if value is None or value == "":
        return "" if "efault:" in (field.description or "") else "none"
    if isinstance(value, Path) and value.is_relative_to(PACKAGED_BUNDLES):
        return f"the packaged {value.name}"
    return _number(name, value)


def _values(name: str, field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return ", ".join(get_args(field.annotation))
    words = {"ge": "from", "gt": "above", "le": "to"}
    bounds = [(words[word], getattr(bound, word)) for bound in field.metadata for word in words if hasattr(bound, word)]
    return " ".join(f"{word} {_number(name, value)}" for word, value in bounds)


def _number(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        for unit, size in (("TiB", 2**40), ("MiB", 2**20), ("KiB", 2**10)):
            if value >= size:
                return f"{value / size:g} {unit}"
    if isinstance(value, int | float) and "port" not in name:
        return f"{value:,g}" if isinstance(value, float) and value < 1_000 else f"{value:,.0f}"
    return str(value)


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
