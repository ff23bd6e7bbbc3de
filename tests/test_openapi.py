"""Whatever the OpenAPI document allows, and what it does not: the edge answers as documented, never with 500."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from processes import TOKEN, Service
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_route_answers_as_documented(edge: Service, restored_policy: None, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{edge.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == 11
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
            continue  # nothing to get wrong

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        def answers_as_documented(case: schemathesis.Case) -> None:
            case.call_and_validate(headers={"authorization": f"Bearer {TOKEN}"}, checks=CHECKS)

        answers_as_documented()
