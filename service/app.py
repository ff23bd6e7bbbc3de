"""create_app and create_large_app: routers, middleware list, lifespan."""

import gc
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api import admin, classify, console, docs, health, openapi
from service.api.problems import install_problems, refusal
from service.api.shared import SharedDocument
from service.errors import StartupError
from service.runtime import EdgeRuntime, LargeRuntime, code_version, open_edge, open_large
from service.server.middleware import HEALTH, DirectRoute, PortMiddleware, RequestMiddleware
from service.server.sites import Sites
from service.settings import EdgeSettings, LargeSettings, allowed_hosts

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


class _Service(FastAPI):
    """FastAPI behind what every request goes through first.

    Among FastAPI's own middleware the classify route would pay 40 us for layers that it takes nothing from.
    """

    def __init__(self, *, title: str, version: str, lifespan: Lifespan) -> None:
        super().__init__(
            title=title,
            version=version,
            lifespan=lifespan,
            openapi_url=None,  # api/docs.py has these routes
            redirect_slashes=False,  # a redirect would name the host and scheme that a client made up
        )
        self.entry: ASGIApp = super().__call__

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        await self.entry(scope, receive, send)


def create_app(settings: EdgeSettings, *, admin_port: int | None = None) -> FastAPI:
    """The edge. admin_port: the port that the private routes really listen on, if they have one of their own."""
    app = _create(
        "Gatekeeper edge",
        settings,
        lambda: open_edge(settings),
        admin_port,
    )
    app.state.request_documents = admin.REQUEST_DOCUMENTS
    app.include_router(admin.router)
    app.include_router(console.router)
    app.state.has_console = True
    return app


def create_large_app(settings: LargeSettings) -> FastAPI:
    """The large-model service."""
    return _create("Gatekeeper large model", settings, lambda: open_large(settings))


def _create(
    title: str,
    settings: EdgeSettings | LargeSettings,
    open_runtime: Callable[[], AbstractAsyncContextManager[EdgeRuntime | LargeRuntime]],
    admin_port: int | None = None,
) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            try:
                runtime = app.state.runtime = await stack.enter_async_context(open_runtime())
                app.state.exposition = SharedDocument(runtime.metrics.exposition)
                # torch and transformers leave a million objects; a full collection over them stops the loop for 150 ms.
                gc.collect()
                gc.freeze()
            except StartupError as error:
                app.state.startup_error = error
                raise
            yield

    admin_routes = (f"/admin/v1/policy{name}" for name in ("", "/history", "/preview", "/rollback"))
    console_routes = ("/console", "/console/state", *(f"/console/{name}" for name in console.FILES))
    routes = ("/v1/classify", "/v1/models", *HEALTH, "/metrics", "/admin/v1/status", *admin_routes, *console_routes)
    app = _Service(title=title, version=code_version(), lifespan=lifespan)
    app.entry = DirectRoute(app.entry, "/v1/classify", classify.classify)
    if admin_port is not None:
        app.entry = PortMiddleware(app.entry, admin_port=admin_port)
    app.entry = RequestMiddleware(
        app.entry,
        routes=frozenset(routes),
        access_log=settings.access_log,
        sites=Sites(allowed_hosts(settings)),
        refuse=refusal,
    )
    app.state.request_documents = ()
    install_problems(app)
    app.include_router(classify.router)
    app.include_router(health.router)
    app.include_router(health.metrics_router)
    app.state.has_console = False
    app.include_router(docs.router)
    app.mount(docs.FILES, docs.Files())
    openapi.add_schemas(app)
    return app
