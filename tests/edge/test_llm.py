"""An edge whose large model is an LLM: the stand-in over the OpenAI wire, in processes of their own."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.llm import llm, saying
from support.processes import Service, admin, spawn, spawn_edge, stopping

UNSURE = "the plastic thing i pay with has gone walkabout"


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = spawn("stand-in", tmp_path_factory.mktemp("llm") / "llm.log")
    with stopping(service):
        service.wait_ready()
        yield service


@pytest.mark.slow
def test_an_llm_answers_what_the_small_model_is_not_sure_of(stand_in: Service, tmp_path: Path) -> None:
    descriptions = tmp_path / "descriptions.json"
    descriptions.write_text(json.dumps({"card_declined": "a payment by card did not go through"}))
    llm = {"REMOTE_WIRE": "openai", "REMOTE_MODEL": "stand-in", "REMOTE_DESCRIPTIONS": str(descriptions)}
    llm |= {"REMOTE_PRICE_PROMPT": "1000000", "REMOTE_PRICE_COMPLETION": "0"}  # a token costs 1
    edge = spawn_edge(tmp_path, f"{stand_in.url}/v1", **llm)
    with stopping(edge):
        edge.wait_ready()
        with httpx.Client(base_url=edge.url, timeout=30.0) as client:
            texts = [UNSURE, "set a timer for ten minutes", *(f"{UNSURE} {number}" for number in range(12))]
            outputs = client.post("/v1/classify", json={"inputs": texts}).json()["outputs"]
            assert (outputs[0]["decision"], outputs[0]["answered_by"]) == ("deferred", "large")
            assert outputs[1]["decision"] == "accepted"
            assert 0.0 < outputs[0]["score"] <= 1.0
            own = httpx.post(
                f"{stand_in.url}/v1/chat/completions",
                json={"model": "stand-in", "messages": [{"role": "user", "content": f"Text:\n{UNSURE}"}]},
            ).json()
            assert own["choices"][0]["message"]["content"] == outputs[0]["label"]
            metrics = {
                name: float(value)
                for name, _, value in (line.rpartition(" ") for line in client.get("/metrics").text.splitlines())
                if name.startswith("gatekeeper_remote_")
            }
            assert (
                metrics["gatekeeper_remote_cost_total"] == metrics['gatekeeper_remote_tokens_total{kind="prompt"}'] > 0
            )
            remote = admin(client, "GET", "status").json()["remote"]
            assert not remote["breaker_open"]
        # Another model at the same server: the small answer stands, and the log names the setting.
    other = spawn_edge(tmp_path, stand_in.url, **(llm | {"REMOTE_MODEL": "nobody"}))
    with stopping(other):
        other.wait_ready()
        (output,) = httpx.post(f"{other.url}/v1/classify", json={"inputs": UNSURE}, timeout=30.0).json()["outputs"]
    assert (output["decision"], output["reason"]) == ("degraded", "remote_bad_answer")
    said = (tmp_path / "edge.log").read_text()
    assert "set GATEKEEPER_REMOTE_MODEL" in said
    assert "plastic" not in said


@pytest.mark.slow
def test_an_edge_in_front_of_one_with_an_llm_reads_an_answer_without_a_score(tmp_path: Path) -> None:
    """The middle one asks an LLM that gives no log-probabilities."""
    with llm(lambda _: saying("card_declined")) as (url, _):
        middle = spawn_edge(tmp_path, url, REMOTE_WIRE="openai", REMOTE_MODEL="m", POLICY_PATH=str(tmp_path / "m.db"))
        with stopping(middle):
            middle.wait_ready()
            (tmp_path / "front").mkdir()
            front = spawn_edge(tmp_path / "front", middle.url)
            with stopping(front):
                front.wait_ready()
                forced = {"inputs": UNSURE, "parameters": {"route": "large"}}
                (output,) = httpx.post(f"{front.url}/v1/classify", json=forced, timeout=30.0).json()["outputs"]
    assert (output["label"], output["score"]) == ("card_declined", None)
    assert (output["decision"], output["answered_by"]) == ("deferred", "large")
