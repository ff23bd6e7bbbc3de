"""The one way from a request to the runtime that answers it."""

from starlette.types import Scope

from service.runtime import EdgeRuntime, Runtime


def runtime_of(scope: Scope) -> Runtime:
    """The edge's, or the large-model service's; RequestMiddleware has looked it up."""
    runtime: Runtime = scope["gatekeeper.running"]
    return runtime


def edge_of(scope: Scope) -> EdgeRuntime:
    """On routes that only an edge has."""
    runtime: EdgeRuntime = scope["gatekeeper.running"]
    return runtime
