"""Whatever the OpenAPI document allows, and what it does not: both services answer as documented, never with 500.

All of schemathesis's checks run, but these. `positive_data_acceptance` and `negative_data_rejection` run where a schema
can tell: the range of a threshold is the bundle's, versions and gate digests are the store's, and query parameters that
nobody knows are ignored. `unsupported_method` and `ignored_auth` have tests of ours in their place. `use_after_free`,
`ensure_resource_availability` and `object_level_authorization` are about resources that are made, deleted and owned.
"""

from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    missing_required_header,
    negative_data_rejection,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from support.processes import TOKEN, Service, admin

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    missing_required_header,
    allow_header_conformance,
]
SCHEMA_TELLS_ALL = {"/v1/models", "/livez", "/readyz", "/metrics", "/admin/v1/policy/history", "/admin/v1/status"}
SCHEMA_TELLS_ALL |= {"/console/state"}
EDGE = {
    *(("POST", "/v1/classify"), ("GET", "/v1/models"), ("GET", "/livez"), ("GET", "/readyz"), ("GET", "/metrics")),
    *((method, "/admin/v1/policy") for method in ("GET", "PUT", "PATCH")),
    *(("GET", "/admin/v1/policy/history"), ("POST", "/admin/v1/policy/rollback"), ("GET", "/admin/v1/status")),
    *(("POST", "/admin/v1/policy/preview"), ("GET", "/console/state")),
}
LARGE = {(method, path) for method, path in EDGE if not path.startswith(("/admin", "/console"))}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
EXAMPLES = [
    pytest.param(10, id="default"),
    pytest.param(300, id="deep", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
]


def operations(service: Service) -> list[schemathesis.schemas.APIOperation]:
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    return [result.ok() for result in schema.get_all_operations()]


def fuzz(
    operation: schemathesis.schemas.APIOperation, mode: GenerationMode, examples: int, headers: dict[str, str]
) -> None:
    checks = list(CHECKS)
    if operation.path in SCHEMA_TELLS_ALL:
        checks.append(positive_data_acceptance)
    if not operation.query:
        checks.append(negative_data_rejection)

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    def answers_as_documented(case: schemathesis.Case) -> None:
        if mode is GenerationMode.POSITIVE:
            case.headers.pop("x-request-timeout-ms", None)  # one of 1 ms may well be answered with 504
        case.call_and_validate(headers=headers, checks=checks)

    answers_as_documented()


def something_to_get_wrong(operation: schemathesis.schemas.APIOperation) -> bool:
    return bool(operation.body or operation.query or operation.headers)


@pytest.mark.slow
def test_both_documents_have_every_operation(edge: Service, large: Service) -> None:
    for service, whole in ((edge, EDGE), (large, LARGE)):
        assert {(operation.method.upper(), operation.path) for operation in operations(service)} == whole


@pytest.mark.slow
@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_route_of_the_edge_answers_as_documented(
    edge: Service, restored_policy: None, mode: GenerationMode, examples: int
) -> None:
    for operation in operations(edge):
        if mode is GenerationMode.POSITIVE or something_to_get_wrong(operation):
            fuzz(operation, mode, examples, {"authorization": f"Bearer {TOKEN}"})


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_route_of_the_large_model_answers_as_documented(large: Service, mode: GenerationMode) -> None:
    for operation in operations(large):
        if mode is GenerationMode.POSITIVE or something_to_get_wrong(operation):
            fuzz(operation, mode, 5, {})


def test_admin_routes_want_the_token_whatever_is_sent(edge: Service, client: httpx.Client) -> None:
    before = admin(client, "GET", "policy").content
    for operation in operations(edge):
        if not operation.path.startswith("/admin"):
            continue

        @given(case=operation.as_strategy())
        @settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        def is_refused(case: schemathesis.Case) -> None:
            for headers in ({"authorization": "Bearer guessed"}, {}):
                response = case.call(headers=headers)
                assert response.status_code == 401
                case.validate_response(response, checks=CHECKS[:5])

        is_refused()
    assert admin(client, "GET", "policy").content == before


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "1.5", "x", "", "٣", "1e2", "9" * 5_000])
def test_a_limit_out_of_its_bounds_is_refused(client: httpx.Client, limit: str) -> None:
    response = admin(client, "GET", "policy/history", params={"limit": limit})
    assert response.status_code == 422
    assert len(response.content) < 1_000


def undocumented(service: Service) -> Iterator[tuple[str, str, set[str]]]:
    """(method, path, methods of that path)"""
    documented: dict[str, set[str]] = {}
    for operation in operations(service):
        documented.setdefault(operation.path, set()).add(operation.method.upper())
    for path, methods in documented.items():
        with_head = methods | ({"HEAD"} if "GET" in methods else set())
        yield from ((method, path, with_head) for method in METHODS if method not in with_head)


def test_a_method_that_is_not_documented_is_refused(edge: Service, client: httpx.Client) -> None:
    for method, path, methods in undocumented(edge):
        response = client.request(method, path)
        assert response.status_code == 405, (method, path)
        assert set(response.headers["allow"].split(", ")) == methods, (method, path)


def test_head_is_get_without_a_body(edge: Service, client: httpx.Client) -> None:
    for operation in operations(edge):
        if operation.method.upper() == "GET":
            headers = {"authorization": f"Bearer {TOKEN}"}
            asked = client.head(operation.path, headers=headers)
            got = client.get(operation.path, headers=headers)
            assert (asked.status_code, asked.content) == (got.status_code, b"")
            assert asked.headers["content-type"] == got.headers["content-type"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_the_classify_route_of_an_image_edge_answers_as_documented(image_edge: Service, mode: GenerationMode) -> None:
    """JSON of texts, JSON of images and forms: one of them fits, the others are refused as documented."""
    operation = schemathesis.openapi.from_url(f"{image_edge.url}/openapi.json")["/v1/classify"]["POST"]
    assert {body.media_type for body in operation.body} == {"application/json", "multipart/form-data"}

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def answers_as_documented(case: schemathesis.Case) -> None:
        if mode is GenerationMode.POSITIVE:
            case.headers.pop("x-request-timeout-ms", None)
        case.call_and_validate(checks=CHECKS)

    answers_as_documented()


def test_the_document_is_built_once_and_the_pages_find_it_behind_a_prefix(client: httpx.Client) -> None:
    first, second = (client.get("/openapi.json") for _ in range(2))
    assert first.content == second.content
    assert first.headers["content-type"] == "application/json"
    for page in ("/docs", "/redoc"):
        assert "openapi.json" in client.get(page).text
        assert "/openapi.json" not in client.get(page).text
