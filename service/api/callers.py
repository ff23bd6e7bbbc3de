"""Who calls: the API key of a request, on the guarded routes."""

from typing import Any

from starlette.types import Scope

from service.access.keys import Caller
from service.api.state import runtime_of

KEY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key, gk_..."},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
# The last one, nothing, is for a service without API keys.
GUARDED: dict[str, Any] = {"security": [{"bearer": []}, {"x-api-key": []}, {}]}


def authenticated(scope: Scope) -> Caller:
    """The caller, whom the access log is told as well. Raises Unauthorized or Forbidden."""
    caller = runtime_of(scope).api_keys.authenticate(scope["headers"])
    scope["gatekeeper.caller"] = caller
    return caller
