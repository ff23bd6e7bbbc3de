"""Errors as problem+json (RFC 9457), whatever raised them."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, ConfigDict
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.types import Scope

from service.api.body import invalid
from service.api.state import runtime_of
from service.bounded_json import ERRORS_TOLD
from service.errors import GatekeeperError, RateLimited

logger = logging.getLogger(__name__)


WHAT_TO_DO = {
    404: "nothing is at this path; /docs lists what there is",
    405: "this path takes other methods, see the header `allow`; /docs lists what there is",
}


class Problem(BaseModel):
    """The body of every answer that is not a success."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    request_id: str | None = None
    errors: list[dict[str, Any]] | None = None


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route for OpenAPI."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }


def install_problems(app: FastAPI) -> None:
    """Register the handlers on an app; every refusal is counted by its kind."""

    async def on_gatekeeper_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, GatekeeperError)
        return refusal(request.scope, error)

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        status = error.status_code
        phrase = HTTPStatus(status).phrase
        runtime_of(request.scope).metrics.count_rejected(phrase.lower().replace(" ", "-"))
        detail = WHAT_TO_DO.get(status, str(error.detail))
        headers = {"allow": _allowed(request)} if status == HTTPStatus.METHOD_NOT_ALLOWED else error.headers
        return _answer(request.scope, "about:blank", phrase, status, detail, None, headers)

    async def on_validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return refusal(request.scope, invalid([_plain(entry) for entry in error.errors()[:ERRORS_TOLD]]))

    async def on_anything(request: Request, _: Exception) -> Response:
        return _problem(request.scope, unexpected())

    app.add_exception_handler(GatekeeperError, on_gatekeeper_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(Exception, on_anything)


def refusal(scope: Scope, error: GatekeeperError) -> Response:
    """Count the error by its kind; its answer."""
    runtime_of(scope).metrics.count_rejected(error.kind)
    if error.status == 500 and error.__cause__ is not None:
        logger.error("request failed", extra={"request_id": _request_id(scope)}, exc_info=error)
    return _problem(scope, error)


def unexpected() -> GatekeeperError:
    """For an exception that nobody has foreseen."""
    return GatekeeperError("an error of the service, not of the request; it has been logged")


def _problem(scope: Scope, error: GatekeeperError) -> Response:
    headers = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, RateLimited):
        headers["ratelimit"] = error.rate_limit
    kind = f"urn:gatekeeper:problem:{error.kind}"
    return _answer(scope, kind, error.title, error.status, error.detail, error.errors, headers)


def _answer(
    scope: Scope,
    kind: str,
    title: str,
    status: int,
    detail: str,
    errors: list[dict[str, Any]] | None,
    headers: Mapping[str, str] | None,
) -> Response:
    # A Problem, without its validation: a refusal under overload must cost as little as can be.
    body = {"type": kind, "title": title, "status": status, "detail": detail, "request_id": _request_id(scope)}
    if errors is not None:
        body["errors"] = errors
    return Response(to_json(body), status, headers, media_type="application/problem+json")


def _allowed(request: Request) -> str:
    """All methods of this path; Starlette's own header has those of one of its routes alone."""
    methods: set[str] = set()
    for route in iter_route_contexts(request.app.routes):
        if route.path == request.scope["path"]:
            methods |= set(route.methods or ())
    return ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))


def _plain(entry: Any) -> dict[str, Any]:
    return {key: entry[key] for key in ("type", "loc", "msg")}


def _request_id(scope: Scope) -> str | None:
    return scope.get("gatekeeper.request_id")
