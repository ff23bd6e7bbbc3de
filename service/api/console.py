"""/console: one page to see the cascade and change its policy. Numbers are shown to whoever reaches it; everything that
/admin/v1 does needs the admin token."""

from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response

from service.api.state import edge_of
from service.api.status import ConsoleState, console_state

FILES = Path(__file__).resolve().parent.parent / "console"
# Trusted Types besides: a browser that knows them refuses to take any text for markup, whatever the script does.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
MEDIA_TYPES = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}


router = APIRouter(prefix="/console", tags=["console"])


@router.get("", include_in_schema=False)
async def page() -> Response:
    """The page."""
    return _file("page.html")


@router.get("/page.css", include_in_schema=False)
async def style() -> Response:
    """Its style."""
    return _file("page.css")


@router.get("/page.js", include_in_schema=False)
async def script() -> Response:
    """Its script."""
    return _file("page.js")


@router.get("/state")
async def state(request: Request) -> ConsoleState:
    """The state of this replica, without a token: numbers and names; no text, no note, no secret."""
    return console_state(edge_of(request.scope))


def _file(name: str) -> Response:
    headers = {"content-security-policy": POLICY, "cache-control": "no-cache"}
    return Response(_content(name), media_type=MEDIA_TYPES[name], headers=headers)


@cache
def _content(name: str) -> bytes:
    return (FILES / name).read_bytes()
