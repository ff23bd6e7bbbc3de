"""/admin/v1: read and change the policy while the service runs. Bearer token; without one configured, 404."""

import hmac
import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from service.api.body import headers_of, parse_json, read_body
from service.api.problems import problem_responses
from service.api.state import edge_of
from service.api.status import Status, replica_status
from service.errors import (
    NotFound,
    PreconditionRequired,
    Unauthorized,
    UnsupportedMediaType,
    VersionMismatch,
)
from service.policy.document import Policy, PolicyPatch, PolicyReplacement
from service.policy.forecast import Preview
from service.policy.operating_point import OperatingPoint

JSON_TYPES = ("application/json", "application/merge-patch+json")
UPDATED_BY = "admin"
MAX_BODY_BYTES = 64 * 1024


class Rollback(BaseModel):
    """Which version to bring back."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: int = Field(ge=1, le=2**53)


class History(BaseModel):
    """Versions, newest first."""

    versions: list[Policy]


async def authorise(request: Request) -> None:
    """Raises NotFound where no token is configured, Unauthorized on a wrong one."""
    token = edge_of(request.scope).settings.admin_token
    if token is None:
        raise NotFound("the admin API is off: start the service with GATEKEEPER_ADMIN_TOKEN")
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    expected = token.get_secret_value().encode()
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), expected):
        raise Unauthorized("send the admin token: Authorization: Bearer TOKEN")


router = APIRouter(
    prefix="/admin/v1", dependencies=[Depends(authorise)], responses=problem_responses(401, 404), tags=["admin"]
)


def _body_of(name: str) -> dict[str, Any]:
    schema = {"schema": {"$ref": f"#/components/schemas/{name}"}}
    return {"requestBody": {"required": True, "content": dict.fromkeys(JSON_TYPES, schema)}}


@router.get("/policy", response_model=Policy)
async def read_policy(request: Request) -> Response:
    """The policy in force on this replica; its version is the ETag."""
    return _policy(edge_of(request.scope).policy.snapshot)


@router.patch(
    "/policy",
    response_model=Policy,
    responses=problem_responses(400, 409, 412, 413, 415, 422, 503),
    openapi_extra=_body_of("PolicyPatch"),
)
async def patch_policy(request: Request) -> Response:
    """Change some fields (a JSON merge patch); `{"threshold": 0.8, "note": "why"}` is the everyday call. If-Match is
    optional."""
    patch = parse_json(PolicyPatch, await _json_body(request))
    policy = edge_of(request.scope).policy
    return _policy(await policy.patch(patch, updated_by=UPDATED_BY, if_match=_if_match(request)))


@router.put(
    "/policy",
    response_model=Policy,
    responses=problem_responses(400, 409, 412, 413, 415, 422, 428, 503),
    openapi_extra=_body_of("PolicyReplacement"),
)
async def replace_policy(request: Request) -> Response:
    """Replace the policy as a whole. If-Match with the version it replaces is required."""
    replacement = parse_json(PolicyReplacement, await _json_body(request))
    if_match = _if_match(request)
    if if_match is None:
        current = edge_of(request.scope).policy.snapshot.version
        raise PreconditionRequired(f'say which version you replace: If-Match: "{current}"')
    policy = edge_of(request.scope).policy
    return _policy(await policy.replace(replacement, updated_by=UPDATED_BY, if_match=if_match))


@router.get("/policy/history", responses=problem_responses(422, 503))
async def read_history(request: Request, limit: Annotated[int, Query(ge=1, le=1_000)] = 50) -> History:
    """The versions kept for this gate digest, newest first."""
    return History(versions=await edge_of(request.scope).policy.history(limit))


@router.post(
    "/policy/rollback",
    response_model=Policy,
    responses=problem_responses(400, 413, 415, 422, 503),
    openapi_extra=_body_of("Rollback"),
)
async def rollback(request: Request) -> Response:
    """Bring an earlier version back, as a new version."""
    asked = parse_json(Rollback, await _json_body(request))
    return _policy(await edge_of(request.scope).policy.rollback(asked.version, updated_by=UPDATED_BY))


@router.post(
    "/policy/preview",
    responses=problem_responses(400, 409, 413, 415, 422),
    openapi_extra=_body_of("PolicyPatch"),
)
async def preview(request: Request) -> Preview:
    """What a change would do, on calibration data and on recent traffic. Takes what PATCH takes and changes nothing."""
    patch = parse_json(PolicyPatch, await _json_body(request))
    runtime = edge_of(request.scope)
    proposed = OperatingPoint.of(runtime.policy.proposed(patch))
    return runtime.forecast.preview(runtime.policy.point, proposed)


@router.get("/status")
async def status(request: Request) -> Status:
    """The state of this replica in one document."""
    return replica_status(edge_of(request.scope))


async def _json_body(request: Request) -> bytes:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in JSON_TYPES:
        raise UnsupportedMediaType("send JSON with Content-Type: application/json")
    return await read_body(headers_of(request.scope), request.receive, MAX_BODY_BYTES, edge_of(request.scope).intake)


def _if_match(request: Request) -> int | None:
    value = request.headers.get("if-match")
    if value is None:
        return None
    if value.strip() == "*":
        return edge_of(request.scope).policy.snapshot.version
    found = re.fullmatch(r'(?:W/)?"([0-9]{1,15})"', value.strip())
    if found is None:
        raise VersionMismatch(f'If-Match must be the ETag of a version, like "7", not {value[:40]!r}')
    return int(found[1])


def _policy(policy: Policy) -> Response:
    return Response(policy.model_dump_json(), headers={"etag": f'"{policy.version}"'}, media_type="application/json")


REQUEST_DOCUMENTS = (PolicyPatch, PolicyReplacement, Rollback)
