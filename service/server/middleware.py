"""Gives every request an id, security headers, its time in the metrics and, while the service stops, a hint to leave.

Plain ASGI: BaseHTTPMiddleware would cost as much as the rest of an accepted request.
"""

import logging
import os
import re
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access.keys import Caller
from service.errors import GatekeeperError
from service.server.running import running
from service.server.sites import Sites

Refuse = Callable[[Scope, GatekeeperError], ASGIApp]

logger = logging.getLogger("service.access")
VALID_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
PRIVATE = ("/admin", "/metrics", "/console")
HEALTH = ("/livez", "/readyz")
SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)
NOT_KEPT = (*SECURITY, (b"cache-control", b"no-store"))  # answers that tell what somebody said, or how we are run


class RequestMiddleware:
    """Our outermost middleware. A path of `routes` becomes a metric label; every other path counts as `other`.

    `refuse` answers the requests that `sites` refuses. Anybody may ask for health.
    """

    def __init__(self, app: ASGIApp, *, routes: frozenset[str], access_log: bool, sites: Sites, refuse: Refuse) -> None:
        self._app = app
        self._routes = routes
        self._access_log = access_log
        self._sites = sites
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        # By name in lower case, as servers send them; of a repeated header the last.
        headers = scope["gatekeeper.headers"] = dict(scope["headers"])
        given = headers.get(b"x-request-id")
        request_id = os.urandom(8).hex() if given is None or not VALID_ID.fullmatch(given) else given.decode()
        scope["gatekeeper.request_id"] = request_id
        service = scope["gatekeeper.running"] = running(scope["app"])
        status = 500
        method = scope["method"]
        if method == "HEAD":  # is GET; the server leaves out the body
            scope = {**scope, "method": "GET"}

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].extend(answer_headers(scope))
                if service.lifecycle.draining:
                    # A kept-alive client would find its connection closed in the middle of a send.
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        refusal = self._sites.refusal(method, headers) if scope["path"] not in HEALTH else None
        app = self._app if refusal is None else self._refuse(scope, refusal)
        try:
            await app(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - began
            path = scope["path"]
            route = path if path in self._routes else "other"
            service.metrics.observe_request(route, status, seconds)
            if self._access_log:
                logger.info(
                    "request",
                    extra={
                        "request_id": request_id,
                        "method": method,
                        "route": route,
                        "status": status,
                        "key": None if (caller := scope.get("gatekeeper.caller")) is None else caller.name,
                        "ms": round(seconds * 1000, 3),
                    },
                )


class DirectRoute:
    """POST to one path, past FastAPI's layers; everything else goes on to the app."""

    def __init__(self, app: ASGIApp, path: str, endpoint: ASGIApp) -> None:
        self._app = app
        self._path = path
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == self._path and scope["method"] == "POST":
            await self._endpoint(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class PortMiddleware:
    """With an admin port: /admin, /metrics and /console are found there alone, /docs on the main port alone. / leads to
    the console there, and to /docs on the main port.

    /v1 is on both: the console has a box to try it, and a page may only ask where it came from.
    """

    def __init__(self, app: ASGIApp, *, admin_port: int) -> None:
        self._app = app
        self._admin_port = admin_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in HEALTH and not scope["path"].startswith("/v1/"):
            on_admin_port = scope["server"] is not None and scope["server"][1] == self._admin_port
            if scope["path"] == "/":
                scope = {**scope, "gatekeeper.private": on_admin_port}
            elif scope["path"].startswith(PRIVATE) != on_admin_port:
                # Nothing is routed at the empty path: the answer is the ordinary 404.
                scope = {**scope, "path": "", "raw_path": b""}
        await self._app(scope, receive, send)


def answer_headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    """The headers of every answer to this request, whoever makes it."""
    caller: Caller | None = scope.get("gatekeeper.caller")
    return [
        (b"x-request-id", scope["gatekeeper.request_id"].encode()),
        *(NOT_KEPT if scope["path"].startswith(("/v1/", "/admin/", "/console/state")) else SECURITY),
        *(() if caller is None else caller.headers),
    ]
