"""GET /openapi.json, /docs and /redoc. Built once: to build the document takes 10 ms, as much as thirty requests."""

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse
from pydantic_core import to_json

DOCUMENT = "openapi.json"  # relative, so that it is found behind a prefix too

router = APIRouter(include_in_schema=False)


@router.get(f"/{DOCUMENT}")
async def document(request: Request) -> Response:
    """The OpenAPI document."""
    state = request.app.state
    if not hasattr(state, "openapi_json"):
        state.openapi_json = to_json(request.app.openapi())
    return Response(state.openapi_json, media_type="application/json")


@router.get("/docs")
async def swagger(request: Request) -> HTMLResponse:
    """Swagger UI on it."""
    return get_swagger_ui_html(openapi_url=DOCUMENT, title=request.app.title)


@router.get("/redoc")
async def redoc(request: Request) -> HTMLResponse:
    """ReDoc on it."""
    return get_redoc_html(openapi_url=DOCUMENT, title=request.app.title)
