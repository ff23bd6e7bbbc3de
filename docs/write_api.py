"""docs/api.md from the edge's own OpenAPI document.

python -m docs.write_api
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from service.app import create_app
from service.settings import EdgeSettings

PAGE = Path(__file__).resolve().parent / "api.md"
HEAD = """# API reference

Made from the edge's OpenAPI document by `make docs`; a running service shows the same at `/docs` and `/openapi.json`.
The large-model service has the same routes without `/admin` and `/console`. [Requests](how-to/requests.md) has examples
and the meaning of each `reason`. Errors are `application/problem+json` (RFC 9457), a
[Problem](#problem), and their `detail` says what to do.
"""
SECRETS = {"admin-token": "the admin token (`Authorization: Bearer TOKEN`)", "bearer": "an API key, where keys are set"}


def page() -> str:
    """The whole page."""
    document = create_app(EdgeSettings()).openapi()
    routes = [
        (method.upper(), path, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    parts = [HEAD, "\n".join(f"- [{method} {path}](#{_anchor(f'{method} {path}')})" for method, path, _ in routes), ""]
    parts += [_route(method, path, operation) for method, path, operation in routes]
    parts += ["## Documents\n"]
    parts += [_document(name, schema) for name, schema in sorted(document["components"]["schemas"].items())]
    return "\n".join(parts).rstrip() + "\n"


def _route(method: str, path: str, operation: Mapping[str, Any]) -> str:
    lines = [f"## {method} {path}\n", operation.get("description", ""), ""]
    wanted = [SECRETS[name] for choice in operation.get("security", ()) for name in choice if name in SECRETS]
    lines += [f"Wants {wanted[0]}.\n"] if wanted else []
    parameters = operation.get("parameters", ())
    if parameters:
        lines += ["| parameter | in | type | |", "| --- | --- | --- | --- |"]
        lines += [
            f"| `{one['name']}`{' (required)' if one.get('required') else ''} | {one['in']} | {_type(one['schema'])} |"
            f" {_cell(one.get('description') or one['schema'].get('description', ''))} |"
            for one in parameters
        ]
        lines += [""]
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        lines += [f"Body, `{media_type}`: {_type(content['schema'])}.\n"]
    lines += ["| status | body | headers |", "| --- | --- | --- |"]
    lines += [_response(status, answer) for status, answer in operation["responses"].items()]
    return "\n".join([*lines, ""])


def _response(status: str, answer: Mapping[str, Any]) -> str:
    bodies = [
        _type(content.get("schema", {})) or media_type for media_type, content in answer.get("content", {}).items()
    ]
    headers = ", ".join(f"`{name}`" for name in answer.get("headers", {}) if name != "x-request-id")
    return f"| {status} | {', '.join(bodies)} | {headers} |"


def _document(name: str, schema: Mapping[str, Any]) -> str:
    lines = [f"### {name}\n", _cell(schema.get("description", "")), ""]
    if schema.get("properties"):
        required = set(schema.get("required", ()))
        lines += ["| field | type | |", "| --- | --- | --- |"]
        lines += [_field(field, about, field in required) for field, about in schema["properties"].items()]
        lines += [""]
    return "\n".join(lines)


def _field(name: str, about: Mapping[str, Any], required: bool) -> str:
    words = [] if required else ["optional"]
    if about.get("default") not in (None, ""):
        words.append(f"default {about['default']}")
    words += [word for word in (_bounds(about), _cell(about.get("description", ""))) if word]
    return f"| `{name}` | {_type(about)} | {'; '.join(words)} |"


def _type(schema: Mapping[str, Any]) -> str:
    """A schema in a few words, with links to the documents below."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{_anchor(name)})"
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(_type(choice) for choice in schema[key]))
    kind: str = schema.get("type", "")
    if kind == "array":
        return f"list of {_type(schema['items'])}" if "items" in schema else "list"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    return kind


def _bounds(about: Mapping[str, Any]) -> str:
    names = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    names |= {"maxLength": "length <=", "minItems": "items >=", "maxItems": "items <="}
    return ", ".join(f"{sign} {about[name]:g}" for name, sign in names.items() if name in about)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _anchor(heading: str) -> str:
    """As GitHub makes it from a heading."""
    return "".join(_kept(heading.lower()))


def _kept(heading: str) -> Iterator[str]:
    for character in heading:
        if character.isalnum() or character in "-_":
            yield character
        elif character == " ":
            yield "-"


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
