"""GET /openapi.json, the pages that show it (/docs, /redoc), and the way from / to what a browser is for.

All that the pages load comes from here, so that they work without the internet and nobody else's script runs on the
origin of the console. Every address is relative: a proxy may strip a prefix.
"""

from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.staticfiles import StaticFiles
from pydantic_core import to_json

PAGES = Path(__file__).resolve().parent.parent / "reference"
# Swagger UI's and ReDoc's own files: this package carries them; nothing of it is imported.
PACKAGE = ("fastapi_offline", "static")
FILES = "/docs/files"
# The styles that ReDoc's script writes into its page, by their hashes: an empty one, which it then fills rule by rule,
# and that of its scroll bars. They belong to the pinned release; a test sees what another one would want.
STYLES = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=' 'sha256-QMIg+bpjm3JdElJ388KYke01izlUW0UoNOeKjpMxdgc='"
# As the console's, but without Trusted Types: both libraries write markup of their own.
POLICY = (
    f"default-src 'none'; script-src 'self'; style-src 'self' {STYLES}; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)


class Files(StaticFiles):
    """What the pages load: sent piece by piece; a browser keeps it and asks each time whether it has changed."""

    def __init__(self) -> None:
        super().__init__(directory=PAGES, packages=[PACKAGE])

    def file_response(self, *arguments: object, **named: object) -> Response:
        """The file, or that it has not changed."""
        response = super().file_response(*arguments, **named)  # type: ignore[arg-type]  # passed on as they came
        response.headers["cache-control"] = "no-cache"
        return response


@router.get("/")
async def start(request: Request) -> Response:
    """To the console, where this listener has one; else to /docs."""
    private = request.scope.get("gatekeeper.private", True)
    return RedirectResponse("console" if request.app.state.has_console and private else "docs")


@router.get("/openapi.json")
async def document(request: Request) -> Response:
    """The OpenAPI document. Built once: that takes 10 ms, as much as thirty requests."""
    state = request.app.state
    if not hasattr(state, "openapi_json"):
        state.openapi_json = to_json(request.app.openapi())
    return Response(state.openapi_json, media_type="application/json")


@router.get("/docs")
async def swagger() -> Response:
    """Swagger UI on it."""
    return _page("swagger.html")


@router.get("/redoc")
async def redoc() -> Response:
    """ReDoc on it."""
    return _page("redoc.html")


def _page(name: str) -> Response:
    headers = {"content-security-policy": POLICY, "cache-control": "no-cache"}
    return Response(_content(name), media_type="text/html", headers=headers)


@cache
def _content(name: str) -> bytes:
    return (PAGES / name).read_bytes()
