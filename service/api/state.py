"""The one way from a request to the runtime that answers it."""

from typing import cast

from starlette.types import Scope

from service.runtime import EdgeRuntime, Runtime


def runtime_of(scope: Scope) -> Runtime:
    """The edge's, or the large-model service's."""
    return cast("Runtime", scope["app"].state.runtime)


def edge_of(scope: Scope) -> EdgeRuntime:
    """On routes that only an edge has."""
    return cast("EdgeRuntime", scope["app"].state.runtime)
