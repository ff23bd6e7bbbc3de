"""The app as an ASGI application: mounted under another path, and when something unforeseen is raised."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount

from service.api.console import FILES, FOLDER, POLICY
from service.app import create_app
from service.settings import EdgeSettings


@asynccontextmanager
async def started(tmp_path: Path) -> AsyncIterator[FastAPI]:
    settings = EdgeSettings(policy_path=tmp_path / "policy.db", remote_url="http://127.0.0.1:9")
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield app


def client_of(app: Any, path: str = "") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=f"http://edge{path}")


async def test_a_mounted_app_serves_every_route(tmp_path: Path) -> None:
    """As behind Ray Serve's ingress, where the service lies under a prefix."""
    async with started(tmp_path) as app, client_of(Starlette(routes=[Mount("/cascade", app)]), "/cascade") as client:
        answer = await client.post("/v1/classify", json={"inputs": "what is my balance", "parameters": {"top_k": 2}})
        assert answer.status_code == 200
        assert len(answer.json()["outputs"][0]["top"]) == 2
        assert answer.headers["x-request-id"] == answer.json()["id"]
        assert (await client.post("/v1/classify", content=b"{")).status_code == 400
        assert (await client.get("/v1/classify")).status_code == 405
        assert (await client.get("/livez")).text == "alive\n"


async def test_an_unforeseen_error_is_a_problem_without_its_words(tmp_path: Path) -> None:
    """Its client learns that it was not the request; the log has the rest."""

    class Broken:
        async def answer(self, *_: object) -> None:
            raise LookupError("a secret of the inside")

    async with started(tmp_path) as app, client_of(app) as client:
        app.state.runtime = replace(app.state.runtime, answerer=Broken())
        answer = await client.post("/v1/classify", json={"inputs": "hello"})
        assert answer.status_code == 500
        assert answer.headers["content-type"] == "application/problem+json"
        assert "secret" not in answer.text
        assert answer.headers["x-request-id"] == answer.json()["request_id"]
        assert 'status="500"' in (await client.get("/metrics")).text


async def test_the_console_is_served_whole(tmp_path: Path) -> None:
    """Every file of its folder; a browser asks for each again, as an upgrade changes them together."""
    assert {path.name for path in FOLDER.iterdir()} == {"page.html", *FILES}
    async with started(tmp_path) as app, client_of(app) as client:
        for name, media_type in FILES.items():
            answer = await client.get(f"/console/{name}")
            assert answer.content == (FOLDER / name).read_bytes()
            assert answer.headers["content-type"] == f"{media_type}; charset=utf-8"
            assert answer.headers.get_list("cache-control") == ["no-cache"]
            assert answer.headers["content-security-policy"] == POLICY
            assert f'route="/console/{name}"' in (await client.get("/metrics")).text


@pytest.mark.parametrize(
    "name", ["", "page.html", "nothing.js", "page.js/", "../app.py", "%2e%2e/app.py", "..%2fapp.py", "a" * 3000]
)
async def test_nothing_else_is_found_beside_the_console(tmp_path: Path, name: str) -> None:
    async with started(tmp_path) as app, client_of(app) as client:
        assert (await client.get(f"/console/{name}")).status_code == 404
