"""`gatekeeper stand-in`: a bundle behind the OpenAI wire, in the place of an LLM, to try the edge without an account.

It reads the text and the labels from the question that models/llm_labels.py asks, answers as an LLM that is told to
would (JSON where a schema asks for it, log-probabilities where they are asked for), and counts tokens by characters.
"""

import json
import math
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from models.bundle import load_bundle
from models.inference.classifier import Classifier, load_classifier
from models.llm_labels import TEMPLATE, TEXT_PLACE, spelling

TEXT_MARK = TEMPLATE[: TEMPLATE.index(TEXT_PLACE)].rpartition("\n\n")[2]  # "Text:\n"
CHARS_A_TOKEN = 4


class _Turn(BaseModel):
    model_config = ConfigDict(extra="ignore")

    role: str
    content: str


class _Asked(BaseModel):
    model_config = ConfigDict(extra="ignore")

    model: str
    messages: list[_Turn]
    response_format: dict[str, Any] | None = None
    logprobs: bool = False
    stream: Literal[False] = False


def create_stand_in(bundle: Path, name: str) -> FastAPI:
    """The app. name: of the only model that it has. Raises BundleError."""
    classifier = load_classifier(load_bundle(bundle))
    one_at_a_time = threading.Lock()
    app = FastAPI(title="A stand-in for an LLM", docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(HTTPException)
    async def refuse(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code)

    @app.get("/readyz")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "gatekeeper"}]}

    @app.post("/v1/chat/completions")
    def complete(asked: _Asked) -> dict[str, Any]:
        if asked.model != name:
            raise HTTPException(404, {"message": f"The model {asked.model} does not exist", "code": "model_not_found"})
        question = next((turn.content for turn in reversed(asked.messages) if turn.role == "user"), "")
        with one_at_a_time:
            label, score = _answer(classifier, question.rpartition(TEXT_MARK)[2], _labels(asked))
        parts = ["", label, ""] if asked.response_format is None else ['{"label": "', json.dumps(label)[1:-1], '"}']
        return _completion(asked, name, parts, score, question)

    return app


def _labels(asked: _Asked) -> list[str] | None:
    """Those of the schema, which the answer keeps to; None without one."""
    try:
        found = asked.response_format["json_schema"]["schema"]["properties"]["label"]["enum"]  # type: ignore[index]
    except (KeyError, TypeError):
        return None
    return [str(label) for label in found]


def _answer(classifier: Classifier, text: str, labels: list[str] | None) -> tuple[str, float]:
    """(the most probable of the labels, its probability), or of the bundle's own."""
    (prediction,) = classifier.predict([text or " "])
    allowed = None if labels is None else {spelling(label): label for label in labels}
    for place in sorted(range(len(prediction.probabilities)), key=lambda place: -prediction.probabilities[place]):
        own = classifier.labels[place]
        if allowed is None:
            return own, float(prediction.probabilities[place])
        if spelling(own) in allowed:
            return allowed[spelling(own)], float(prediction.probabilities[place])
    return (labels or ["none"])[0], 1e-6


def _completion(asked: _Asked, name: str, parts: list[str], score: float, question: str) -> dict[str, Any]:
    content = "".join(parts)
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": content, "refusal": None},
        "finish_reason": "stop",
        "logprobs": None,
    }
    if asked.logprobs:
        log_probabilities = (0.0, math.log(max(score, 1e-12)), 0.0)
        choice["logprobs"] = {
            "content": [
                {"token": part, "logprob": value, "bytes": list(part.encode()), "top_logprobs": []}
                for part, value in zip(parts, log_probabilities, strict=True)
                if part
            ]
        }
    used = {"prompt_tokens": len(question) // CHARS_A_TOKEN + 1, "completion_tokens": len(content) // CHARS_A_TOKEN + 1}
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": name,
        "choices": [choice],
        "usage": used | {"total_tokens": sum(used.values())},
    }


def serve(bundle: Path, name: str, host: str, port: int) -> int:
    """Serve until it is stopped. Raises BundleError."""
    app = create_stand_in(bundle, name)
    print(f"{name} answers on http://{host}:{port}/v1/chat/completions", file=sys.stderr, flush=True)
    uvicorn.run(app, host=host, port=port, log_level="warning")
    return 0
