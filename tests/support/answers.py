"""What every refusal of a service must be, whichever route gives it."""

import httpx

from service.api.problems import Problem


def problem(response: httpx.Response, status: int, kind: str = "") -> Problem:
    """The problem document of a refusal, in few words and with the request's id; `kind` is the end of its type."""
    assert response.status_code == status, response.text[:300]
    assert response.headers["content-type"] == "application/problem+json"
    found = Problem.model_validate_json(response.content)
    assert found.status == status
    assert found.request_id == response.headers["x-request-id"]
    assert 10 < len(found.detail) < 400
    assert "\n" not in found.detail
    if kind:
        assert found.type == f"urn:gatekeeper:problem:{kind}"
    return found
