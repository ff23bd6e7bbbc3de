"""The reference of the benchmark: the quickest route that one would write with FastAPI; bench.py starts it.

A hard one: it reads the body but does not parse it (neither request.json() nor a pydantic model), has no model, and
sends bytes that are ready. What it costs is what uvicorn, Starlette and FastAPI cost anybody.
"""

import os

from fastapi import FastAPI, Request, Response

ANSWER = os.environ.get("BARE_ANSWER", "{}").encode()  # bench.py gives it the edge's own answer: the same size
app = FastAPI()


@app.post("/v1/classify")
async def classify(request: Request) -> Response:
    """The same bytes whatever the question."""
    await request.body()
    return Response(ANSWER, media_type="application/json")
