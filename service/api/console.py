"""/console: one page to see the cascade and change its policy. Numbers are shown to whoever reaches it; everything that
/admin/v1 does needs the admin token."""

from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response

from service.api.state import edge_of
from service.api.status import ConsoleState, console_state

FOLDER = Path(__file__).resolve().parent.parent / "console"
# Trusted Types besides: a browser that knows them refuses to take any text for markup, whatever the script does.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
MODULES = ("page", "words", "elements", "edge", "token", "traffic", "parts", "draft", "plot", "versions", "trial")
# What the page loads, by media type: no other file of the folder is found.
FILES = {"page.css": "text/css"} | {f"{module}.js": "text/javascript" for module in MODULES}


router = APIRouter(prefix="/console", tags=["console"])


@router.get("", include_in_schema=False)
async def page() -> Response:
    """The page."""
    return _answer("page.html", "text/html")


@router.get("/state")
async def state(request: Request) -> ConsoleState:
    """The state of this replica, without a token: numbers and names; no text, no note, no secret."""
    return console_state(edge_of(request.scope))


def _serve(name: str, media_type: str) -> None:
    @router.get(f"/{name}", include_in_schema=False)
    async def file() -> Response:
        return _answer(name, media_type)


for _name, _media_type in FILES.items():
    _serve(_name, _media_type)


def _answer(name: str, media_type: str) -> Response:
    headers = {"content-security-policy": POLICY, "cache-control": "no-cache"}
    return Response(_content(name), media_type=media_type, headers=headers)


@cache
def _content(name: str) -> bytes:
    return (FOLDER / name).read_bytes()
