"""What the OpenAPI document says beyond FastAPI's own: headers in and out, the API keys and the admin token."""

from typing import Any

from fastapi import FastAPI

from service.api.callers import KEY_SCHEMES
from service.api.documents import ClassifyImagesRequest, ClassifyRequest
from service.api.forms import form_schema
from service.api.problems import Problem

ADMIN_SCHEME = {"admin-token": {"type": "http", "scheme": "bearer", "description": "GATEKEEPER_ADMIN_TOKEN"}}


def _header(description: str, *, required: bool = False, kind: str = "string") -> dict[str, Any]:
    return {"description": description, "required": required, "schema": {"type": kind}}


def _parameter(name: str, description: str, *, required: bool = False, **schema: Any) -> dict[str, Any]:
    entry = {"name": name, "in": "header", "description": description, "required": required}
    return {**entry, "schema": schema}


REQUEST_ID = _header("the request's own x-request-id if it is a plain one, else made up", required=True)
RETRY_AFTER = _header("seconds", kind="integer")
CHALLENGE = _header("Bearer", required=True)
ETAG = _header('the version of the policy, like "7"', required=True)
CLASSIFY_HEADERS = {
    "server-timing": _header("milliseconds in the queue, the small and the remote model", required=True),
    "x-gatekeeper-policy-version": _header("from an edge", kind="integer"),
}
# x-gatekeeper-hops is between edges: no client sends it.
CLASSIFY_PARAMETERS = [
    _parameter("x-request-timeout-ms", "the time that the client has", type="integer", minimum=1, maximum=86_400_000),
    _parameter("x-request-id", "comes back in the answer and in the logs", type="string"),
]


def _if_match(required: bool) -> dict[str, Any]:
    return _parameter("If-Match", "the ETag of the version to be changed", required=required, type="string")


PARAMETERS = {
    ("/v1/classify", "post"): CLASSIFY_PARAMETERS,
    ("/admin/v1/policy", "patch"): [_if_match(False)],
    ("/admin/v1/policy", "put"): [_if_match(True)],
}
POLICY_PATHS = ("/admin/v1/policy", "/admin/v1/policy/rollback")


def _complete(document: dict[str, Any]) -> None:
    """Adds them to the document in place."""
    schemes = document["components"]["securitySchemes"] = dict(KEY_SCHEMES)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if path.startswith("/admin"):
                schemes |= ADMIN_SCHEME
                operation["security"] = [{"admin-token": []}]
            if (path, method) in PARAMETERS:
                operation["parameters"] = PARAMETERS[path, method]
            for status, response in operation["responses"].items():
                response["headers"] = _headers(path, status)


def _headers(path: str, status: str) -> dict[str, Any]:
    headers = {"x-request-id": REQUEST_ID}
    if status == "200" and path == "/v1/classify":
        headers |= CLASSIFY_HEADERS
    if status == "200" and path in POLICY_PATHS:
        headers["ETag"] = ETAG
    if status == "401":
        headers["WWW-Authenticate"] = CHALLENGE
    if status in ("429", "503"):
        headers["Retry-After"] = RETRY_AFTER
    return headers


def add_schemas(app: FastAPI) -> None:
    """Name the documents that the routes read by themselves in the OpenAPI document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for model in (ClassifyRequest, ClassifyImagesRequest, Problem, *app.state.request_documents):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= schema.pop("$defs", {})
            schemas[model.__name__] = schema
        schemas["ClassifyForm"] = form_schema(schemas["Parameters"]["properties"])
        _complete(document)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document
