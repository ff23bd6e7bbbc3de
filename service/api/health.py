"""GET /livez, /readyz and /metrics. Neither health route depends on Redis or on the large model."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from service.api.state import runtime_of

router = APIRouter()
metrics_router = APIRouter()


@router.get(
    "/livez",
    response_class=PlainTextResponse,
    responses={503: {"description": "the model hangs or has died", "content": {"text/plain": {}}}},
)
async def livez(request: Request) -> Response:
    """200 while the process and its model run; 503 when it hangs or has died, and a restart would help."""
    trouble = runtime_of(request.scope).batcher.trouble()
    if trouble is not None:
        return PlainTextResponse(f"{trouble}\n", 503)
    return PlainTextResponse("alive\n")


@router.get(
    "/readyz",
    response_class=PlainTextResponse,
    responses={503: {"description": "stopping, or the model is in trouble", "content": {"text/plain": {}}}},
)
async def readyz(request: Request) -> Response:
    """200 while this replica wants traffic; 503 from SIGTERM on, and while its model hangs or is dead."""
    runtime = runtime_of(request.scope)
    if runtime.lifecycle.draining:
        return PlainTextResponse("stopping\n", 503)
    if (trouble := runtime.batcher.trouble()) is not None:
        return PlainTextResponse(f"{trouble}\n", 503)
    return PlainTextResponse("ready\n")


@metrics_router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    body, content_type = await request.app.state.exposition.get()
    return Response(body, media_type=content_type)
