"""The classify route of the running pair: the contract, and every bad input with its answer."""

import json
import re
import threading
from collections.abc import Iterator

import httpx
import pytest
from support.answers import problem
from support.processes import Service, eventually

from service.api.documents import ClassifyResponse
from service.api.problems import Problem

EASY = "what is my checking account balance"
ODD = "asdf qwer zxcv"


def classify(client: httpx.Client, inputs: object, **parameters: object) -> dict[str, object]:
    response = client.post("/v1/classify", json={"inputs": inputs, "parameters": parameters})
    assert response.status_code == 200, response.text
    ClassifyResponse.model_validate_json(response.content)
    document: dict[str, object] = response.json()
    return document


def test_an_easy_text_is_answered_by_the_small_model_and_an_odd_one_by_the_large(client: httpx.Client) -> None:
    answer = classify(client, [EASY, ODD])
    accepted, deferred = answer["outputs"]  # type: ignore[misc]
    assert (accepted["decision"], accepted["answered_by"], accepted["reason"]) == ("accepted", "small", None)
    assert accepted["label"] == "balance"
    assert accepted["small"] == {"label": accepted["label"], "score": accepted["score"]}
    assert accepted["confidence"] >= answer["threshold"]
    assert (deferred["decision"], deferred["answered_by"], deferred["reason"]) == (
        "deferred",
        "large",
        "below_threshold",
    )
    assert deferred["confidence"] < answer["threshold"]
    assert deferred["small"]["score"] == deferred["confidence"]


def test_one_text_gives_a_list_of_one(client: httpx.Client) -> None:
    assert len(classify(client, EASY)["outputs"]) == 1  # type: ignore[arg-type]


def test_the_headers_carry_what_a_client_needs(client: httpx.Client) -> None:
    response = client.post("/v1/classify", json={"inputs": ODD}, headers={"x-request-id": "my-id.1"})
    assert response.headers["x-request-id"] == response.json()["id"] == "my-id.1"
    assert response.headers["x-gatekeeper-policy-version"] == str(response.json()["policy_version"])
    assert [part.split(";")[0] for part in response.headers["server-timing"].split(", ")] == [
        "queue",
        "small",
        "remote",
    ]
    hostile = client.post("/v1/classify", json={"inputs": EASY}, headers={"x-request-id": "a" * 200})
    assert len(hostile.headers["x-request-id"]) == 16


def test_overrides_decide_for_one_request(client: httpx.Client) -> None:
    def first(**parameters: object) -> dict[str, object]:
        return classify(client, EASY, **parameters)["outputs"][0]  # type: ignore[index, no-any-return]

    assert first(threshold=1.0)["decision"] == "deferred"
    forced = first(route="large")
    assert (forced["decision"], forced["answered_by"], forced["reason"]) == ("deferred", "large", "forced")
    small = classify(client, ODD, route="small")["outputs"][0]  # type: ignore[index]
    assert (small["decision"], small["answered_by"], small["reason"]) == ("accepted", "small", "forced")
    assert classify(client, ODD, threshold=0.0)["threshold"] == 0.0


def test_top_k_lists_the_labels_of_whoever_answered(client: httpx.Client) -> None:
    for output in classify(client, [EASY, ODD], top_k=3)["outputs"]:  # type: ignore[attr-defined]
        assert len(output["top"]) == 3
        assert output["top"][0] == {"label": output["label"], "score": output["score"]}
        scores = [entry["score"] for entry in output["top"]]
        assert scores == sorted(scores, reverse=True)
    assert len(classify(client, EASY, top_k=1000)["outputs"][0]["top"]) == 150  # type: ignore[index]
    assert "top" not in classify(client, EASY)["outputs"][0]  # type: ignore[index]


def test_a_list_is_answered_as_each_of_its_texts_alone(client: httpx.Client) -> None:
    texts = [EASY, ODD, "🐟 ünï", "\u0000", "set a timer for ten minutes", "  ", "a" * 5000]
    together = classify(client, texts)["outputs"]
    for text, output in zip(texts, together, strict=True):  # type: ignore[call-overload]
        alone = classify(client, text)["outputs"][0]  # type: ignore[index]
        assert (alone["label"], alone["decision"]) == (output["label"], output["decision"])
        assert alone["confidence"] == output["confidence"]


def test_the_most_items_fit_in_one_request(client: httpx.Client) -> None:
    assert len(classify(client, [EASY, ODD] * 128)["outputs"]) == 256  # type: ignore[arg-type]


def test_a_long_text_is_cut_and_says_so(client: httpx.Client) -> None:
    long, short = classify(client, [EASY + " x" * 5000, EASY])["outputs"]  # type: ignore[misc]
    assert long["truncated"] is True
    assert "truncated" not in short


BAD = {
    "not JSON": (b"hello", 400),
    "half of JSON": (b'{"inputs": "a', 400),
    "no body": (b"", 400),
    "invalid UTF-8": (b'{"inputs": "\xff\xfe"}', 400),
    "lone surrogate": (b'{"inputs": "\\ud800"}', 400),
    "a list": (b"[]", 422),
    "no inputs": (b"{}", 422),
    "null": (b'{"inputs": null}', 422),
    "a number": (b'{"inputs": 3}', 422),
    "empty list": (b'{"inputs": []}', 422),
    "empty text": (b'{"inputs": ""}', 422),
    "empty text in a list": (b'{"inputs": ["a", ""]}', 422),
    "number in a list": (b'{"inputs": ["a", 3]}', 422),
    "nested list": (b'{"inputs": [["a"]]}', 422),
    "unknown field": (b'{"inputs": "a", "input": "b"}', 422),
    "unknown parameter": (b'{"inputs": "a", "parameters": {"treshold": 1}}', 422),
    "threshold above": (b'{"inputs": "a", "parameters": {"threshold": 1.5}}', 422),
    "threshold below": (b'{"inputs": "a", "parameters": {"threshold": -0.1}}', 422),
    "threshold NaN": (b'{"inputs": "a", "parameters": {"threshold": NaN}}', 422),
    "threshold infinite": (b'{"inputs": "a", "parameters": {"threshold": 1e999}}', 422),
    "threshold as text": (b'{"inputs": "a", "parameters": {"threshold": "0.5"}}', 422),
    "threshold as truth": (b'{"inputs": "a", "parameters": {"threshold": true}}', 422),
    "unknown route": (b'{"inputs": "a", "parameters": {"route": "medium"}}', 422),
    "no top_k": (b'{"inputs": "a", "parameters": {"top_k": 0}}', 422),
    "half a top_k": (b'{"inputs": "a", "parameters": {"top_k": 1.5}}', 422),
    "257 items": (json.dumps({"inputs": ["a"] * 257}).encode(), 413),
    "10,001 items": (json.dumps({"inputs": ["a"] * 10_001}).encode(), 413),
    "a text of 1 MB": (json.dumps({"inputs": "a" * 1_000_000}).encode(), 413),
    "5 MB": (b'{"inputs": "' + b"a" * 5_000_000 + b'"}', 413),
    "deep nesting": (b"[" * 100_000, 413),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_problem(client: httpx.Client, name: str) -> None:
    body, status = BAD[name]
    response = client.post("/v1/classify", content=body, headers={"content-type": "application/json"})
    problem(response, status)
    assert len(response.content) < 6_000


@pytest.mark.parametrize(
    "sent",
    [
        {"json": {"inputs": {"image": "aGVsbG8="}}},
        {"json": {"inputs": [{"image": "aGVsbG8="}]}},
        {"json": {"inputs": ["a", {"image": "aGVsbG8="}]}},
        {"files": {"images": b"hello"}},
    ],
)
def test_an_image_is_refused_by_a_model_of_texts(client: httpx.Client, sent: dict[str, object]) -> None:
    response = client.post("/v1/classify", **sent)
    assert response.status_code == 422
    assert "this model takes texts" in response.json()["detail"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-gatekeeper-hops": "5"}, 508),
        ({"x-gatekeeper-hops": "many"}, 422),
        ({"x-gatekeeper-hops": "-1"}, 422),
        ({"x-request-timeout-ms": "soon"}, 422),
        ({"x-request-timeout-ms": "0"}, 422),
        ({"x-request-timeout-ms": "1e3"}, 422),
    ],
)
def test_bad_headers_are_refused(client: httpx.Client, headers: dict[str, str], status: int) -> None:
    response = client.post("/v1/classify", json={"inputs": EASY}, headers=headers)
    assert response.status_code == status
    Problem.model_validate_json(response.content)


def test_hops_within_the_limit_pass(client: httpx.Client) -> None:
    assert client.post("/v1/classify", json={"inputs": ODD}, headers={"x-gatekeeper-hops": "3"}).status_code == 200


def test_unknown_paths_and_methods_are_problems_too(client: httpx.Client) -> None:
    for method, path, status in (("GET", "/v1/classify", 405), ("GET", "/nope", 404), ("DELETE", "/livez", 405)):
        response = client.request(method, path)
        assert response.status_code == status
        Problem.model_validate_json(response.content)


def test_a_chunked_body_over_the_limit_is_refused(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"inputs": "'
        for _ in range(80):
            yield b"a" * 65_536

    response = client.post("/v1/classify", content=chunks(), headers={"content-type": "application/json"})
    assert response.status_code == 413


def test_bad_requests_do_not_disturb_good_ones(client: httpx.Client, edge: Service) -> None:
    """Malformed bodies and broken connections in between: every good request is answered right."""
    stop, failures = threading.Event(), list[str]()

    def disturb() -> None:
        with httpx.Client(base_url=edge.url, timeout=20.0) as own:
            while not stop.is_set():
                for name in ("not JSON", "invalid UTF-8", "10,001 items", "number in a list"):
                    body, status = BAD[name]
                    if own.post("/v1/classify", content=body).status_code != status:
                        failures.append(name)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(50):
            accepted, deferred = classify(client, [EASY, ODD])["outputs"]  # type: ignore[misc]
            assert (accepted["answered_by"], deferred["answered_by"]) == ("small", "large")
    finally:
        stop.set()
        thread.join()
    assert failures == []


def test_both_services_tell_what_they_serve(client: httpx.Client, large: Service) -> None:
    small = client.get("/v1/models").json()["data"][0]
    other = httpx.get(f"{large.url}/v1/models").json()["data"][0]
    assert (small["id"], small["role"], small["runtime"]) == ("clinc150-small", "edge", "transformers")
    assert (other["id"], other["role"], other["runtime"]) == ("clinc150-large", "large", "head")
    assert small["labels"] == other["labels"]
    assert len(small["labels"]) == 150


def test_the_large_model_counts_items_before_it_reads_them(large: Service) -> None:
    response = httpx.post(f"{large.url}/v1/classify", content=b'{"inputs":[' + b"0," * 2_000_000 + b"0]}")
    assert response.status_code == 413
    assert "more than 4,864 values: 256 items is the most" in response.json()["detail"]


def test_the_large_model_speaks_the_same_route(large: Service) -> None:
    with httpx.Client(base_url=large.url, timeout=20.0) as client:
        answer = classify(client, [EASY])
    output = answer["outputs"][0]  # type: ignore[index]
    assert (answer["policy_version"], answer["threshold"]) == (None, None)
    assert (output["decision"], output["answered_by"], output["small"]) == ("accepted", "large", None)


def test_items_are_counted_once_by_what_became_of_them(client: httpx.Client) -> None:
    def counts() -> dict[str, float]:
        lines = client.get("/metrics").text.splitlines()
        return {
            line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith("gatekeeper_items_total")
        }

    def sample(decision: str, override: str, reason: str) -> str:
        labels = f'decision="{decision}",model="clinc150-small",override="{override}",reason="{reason}"'
        return f"gatekeeper_items_total{{{labels}}}"

    before = counts()
    classify(client, [EASY, ODD, ODD])
    classify(client, [EASY], route="large")
    classify(client, [ODD], threshold=0.0)
    client.post("/v1/classify", content=b"nonsense")
    after = counts()
    changed = {key: after[key] - before.get(key, 0.0) for key in after if after[key] != before.get(key, 0.0)}
    assert changed == {
        sample("accepted", "none", "none"): 1.0,
        sample("deferred", "none", "below_threshold"): 2.0,
        sample("deferred", "route", "forced"): 1.0,
        sample("accepted", "threshold", "none"): 1.0,
    }


def test_every_metric_of_the_contract_exists_from_the_start(client: httpx.Client) -> None:
    names = {line.split()[2] for line in client.get("/metrics").text.splitlines() if line.startswith("# TYPE")}
    assert names >= {
        f"gatekeeper_{name}"
        for name in [
            "items_total",
            "deferral_ratio",
            "expected_deferral_ratio",
            "expected_joint_accuracy",
            "calibration_confidence",
            "confidence",
            "threshold",
            "policy_version",
            "policy_store_up",
            "request_seconds",
            "small_seconds",
            "batch_size",
            "queue_depth",
            "queue_capacity",
            "rejected_total",
            "remote_seconds",
            "remote_requests_total",
            "remote_breaker_open",
            "remote_endpoint_breaker_open",
            "build_info",
        ]
    }


def test_the_calibration_shares_have_the_bounds_of_the_confidence_buckets(client: httpx.Client) -> None:
    """Or a query that holds one against the other would match nothing."""
    text = client.get("/metrics").text
    shares = re.findall(
        r'^gatekeeper_calibration_confidence\{le="([^"]+)",model="clinc150-small"\} (\S+)$', text, re.MULTILINE
    )
    buckets = re.findall(r'^gatekeeper_confidence_bucket\{le="([^"]+)",model="clinc150-small"\}', text, re.MULTILINE)
    assert [bound for bound, _ in shares] == [bound for bound in buckets if bound != "+Inf"]
    values = [float(share) for _, share in shares]
    assert values == sorted(values)
    assert (len(values), values[-1]) == (20, 1.0)


def test_no_label_holds_a_path_that_a_client_made_up(client: httpx.Client) -> None:
    client.get("/made/up/path")
    text = client.get("/metrics").text
    assert "made" not in text
    assert 'route="other",status="404"' in text


def test_the_openapi_document_names_every_body(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    references = {part.split('"')[0] for part in json.dumps(document).split('"#/components/schemas/')[1:]}
    assert references <= schemas.keys()
    assert {"ClassifyRequest", "ClassifyResponse", "Problem", "Policy", "PolicyPatch"} <= schemas.keys()


def test_a_client_that_leaves_while_the_large_model_works_disturbs_nobody(client: httpx.Client, edge: Service) -> None:
    left = 0
    for _ in range(20):
        try:
            httpx.post(f"{edge.url}/v1/classify", json={"inputs": [ODD] * 200}, timeout=httpx.Timeout(5.0, read=0.02))
        except httpx.ReadTimeout:
            left += 1
    assert left >= 10, "a busy machine may be late to leave, but not most of the time"
    eventually(lambda: classify(client, ODD)["outputs"][0]["decision"] == "deferred", "an answer as ever")  # type: ignore[index]
    eventually(lambda: "gatekeeper_queue_depth 0.0" in client.get("/metrics").text, "an empty queue")
