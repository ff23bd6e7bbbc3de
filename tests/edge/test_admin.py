"""The admin API of a running edge: the policy's whole life over HTTP."""

import httpx
import pytest
from support.processes import TOKEN, Service, admin, eventually

from service.api.problems import Problem
from service.policy.document import Policy
from service.policy.sqlite import SqlitePolicyStore

ODD = "asdf qwer zxcv"


pytestmark = pytest.mark.usefixtures("restored_policy")


def decision(client: httpx.Client, text: str = ODD) -> tuple[str, str | None]:
    output = client.post("/v1/classify", json={"inputs": text}).json()["outputs"][0]
    return output["decision"], output["reason"]


def test_the_policy_is_read_with_its_version_as_etag(client: httpx.Client) -> None:
    response = admin(client, "GET", "policy")
    policy = Policy.model_validate_json(response.content)
    assert response.headers["etag"] == f'"{policy.version}"'
    assert policy.gate_digest == client.get("/v1/models").json()["data"][0]["gate_digest"]


@pytest.mark.parametrize("media_type", ["application/json", "application/merge-patch+json"])
def test_a_patched_threshold_decides_from_the_next_request_on(client: httpx.Client, media_type: str) -> None:
    before = admin(client, "GET", "policy").json()
    assert decision(client) == ("deferred", "below_threshold")
    response = admin(client, "PATCH", "policy", content=b'{"threshold": 0.0}', headers={"content-type": media_type})
    assert response.status_code == 200
    assert response.json()["version"] > before["version"]
    answer = client.post("/v1/classify", json={"inputs": ODD}).json()
    assert (answer["threshold"], answer["policy_version"]) == (0.0, response.json()["version"])
    assert answer["outputs"][0]["decision"] == "accepted"
    metrics = client.get("/metrics").text
    assert 'gatekeeper_threshold{model="clinc150-small"} 0.0' in metrics
    assert 'gatekeeper_expected_deferral_ratio{model="clinc150-small"} 0.0' in metrics


def test_deferral_off_accepts_everything_and_says_why(client: httpx.Client) -> None:
    admin(client, "PATCH", "policy", json={"deferral": "off"})
    assert decision(client) == ("accepted", "deferral_off")


def test_put_needs_the_version_it_replaces(client: httpx.Client) -> None:
    current = admin(client, "GET", "policy")
    body = {**current.json(), "threshold": 0.7, "note": "ünï\n<script>"}
    assert admin(client, "PUT", "policy", json=body).status_code == 428
    assert admin(client, "PUT", "policy", json=body, headers={"if-match": '"999999"'}).status_code == 412
    response = admin(client, "PUT", "policy", json=body, headers={"if-match": current.headers["etag"]})
    assert (response.status_code, response.json()["threshold"]) == (200, 0.7)
    again = admin(client, "PUT", "policy", json=body, headers={"if-match": current.headers["etag"]})
    assert again.status_code == 412


def test_a_preview_tells_what_a_change_would_do_and_changes_nothing(client: httpx.Client) -> None:
    before = admin(client, "GET", "policy").json()
    client.post("/v1/classify", json={"inputs": [ODD, "what is my checking account balance"]})
    found = admin(client, "POST", "policy/preview", json={"threshold": 1.0}).json()
    assert found["version"] == before["version"]
    assert found["current"]["threshold"] == before["threshold"]
    assert found["proposed"]["threshold"] == 1.0
    assert found["proposed"]["expected_deferral_ratio"] > found["current"]["expected_deferral_ratio"]
    assert found["proposed"]["recent_deferral_ratio"] > 0
    assert found["calibration_items"] == 1500
    assert admin(client, "GET", "policy").json() == before
    applied = admin(client, "PATCH", "policy", json={"threshold": 1.0})
    assert applied.status_code == 200
    status = admin(client, "GET", "status").json()
    for number in ("expected_deferral_ratio", "expected_joint_accuracy"):
        assert status[number] == found["proposed"][number]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"threshold": 1.5}', 422),
        (b'{"threshold": "0.8"}', 422),
        (b'{"surprise": 1}', 422),
        (b'{"threshold": null}', 422),
        (b'{"gate_digest": "another"}', 409),
        (b"nonsense", 400),
    ],
)
def test_a_preview_refuses_what_a_patch_refuses(client: httpx.Client, body: bytes, status: int) -> None:
    headers = {"content-type": "application/json"}
    answers = [
        admin(client, method, path, content=body, headers=headers)
        for method, path in (("POST", "policy/preview"), ("PATCH", "policy"))
    ]
    assert [answer.status_code for answer in answers] == [status, status]
    assert answers[0].json()["detail"] == answers[1].json()["detail"]
    assert client.post("/admin/v1/policy/preview", json={"threshold": 0.5}).status_code == 401


def test_history_lists_versions_and_rollback_brings_one_back(client: httpx.Client) -> None:
    first = admin(client, "PATCH", "policy", json={"threshold": 0.11, "note": "one"}).json()
    admin(client, "PATCH", "policy", json={"threshold": 0.22, "note": "two"})
    versions = admin(client, "GET", "policy/history", params={"limit": 2}).json()["versions"]
    assert [version["note"] for version in versions] == ["two", "one"]
    assert admin(client, "PATCH", "policy", json={"threshold": 0.33}).json()["note"] == ""
    back = admin(client, "POST", "policy/rollback", json={"version": first["version"]})
    assert (back.status_code, back.json()["threshold"]) == (200, 0.11)
    assert back.json()["version"] > versions[0]["version"]
    assert back.json()["note"] == f"rollback to version {first['version']}: one"
    assert admin(client, "POST", "policy/rollback", json={"version": 10**9}).status_code == 404


def test_status_tells_the_state_in_one_document(client: httpx.Client) -> None:
    status = admin(client, "GET", "status").json()
    assert status["model"] == "clinc150-small"
    assert status["policy_store"] == {"kind": "sqlite", "up": True}
    assert status["remote"]["labels_match"] is True
    assert 0.0 < status["expected_deferral_ratio"] < 0.5
    assert 0.9 < status["expected_joint_accuracy"] < 1.0


async def test_what_a_later_release_has_put_into_the_policy_is_shown_and_kept_but_not_taken(
    edge: Service, client: httpx.Client
) -> None:
    before = Policy.model_validate_json(admin(client, "GET", "policy").content)
    store = SqlitePolicyStore(edge.log.with_name("policy.db"))
    cap = {"cap": {"day": 5.5}}
    later = Policy.model_validate(before.model_dump() | cap | {"version": before.version + 1, "note": "later"})
    await store.append("clinc150-small", later, expected_version=before.version)
    await store.close()
    eventually(lambda: admin(client, "GET", "policy").json()["version"] == later.version, "the edge follows")

    shown = admin(client, "GET", "policy")
    assert shown.content == later.model_dump_json().encode()
    assert admin(client, "GET", "status").json()["policy"] == shown.json()
    assert "cap" not in client.get("/console/state").json()["policy"]
    for method, path, body in (
        ("PATCH", "policy", cap),
        ("POST", "policy/preview", cap),
        ("PUT", "policy", shown.json()),
    ):
        refused = admin(client, method, path, json=body, headers={"if-match": shown.headers["etag"]})
        assert (refused.status_code, refused.json()["detail"].partition(":")[0]) == (422, "cap")
        assert [error["loc"] for error in refused.json()["errors"]] == [["cap"]]

    patched = admin(client, "PATCH", "policy", json={"threshold": 0.4}).json()
    assert patched["cap"] == cap["cap"]
    known = {name: value for name, value in patched.items() if name != "cap"}
    replaced = admin(client, "PUT", "policy", json=known, headers={"if-match": f'"{patched["version"]}"'})
    assert "cap" not in replaced.json(), "what a replacement leaves out takes its default"
    back = admin(client, "POST", "policy/rollback", json={"version": later.version}).json()
    assert back["cap"] == cap["cap"]
    versions = admin(client, "GET", "policy/history", params={"limit": 4}).json()["versions"]
    assert [version.get("cap") for version in versions] == [cap["cap"], None, cap["cap"], cap["cap"]]
    assert admin(client, "PUT", "policy", json=known, headers={"if-match": "*"}).status_code == 200


BAD = {
    "threshold above": ({"threshold": 1.01}, {}, 422),
    "threshold below": ({"threshold": -0.01}, {}, 422),
    "threshold as text": ({"threshold": "0.5"}, {}, 422),
    "threshold null": ({"threshold": None}, {}, 422),
    "unknown field": ({"treshold": 0.5}, {}, 422),
    "version": ({"version": 3}, {}, 422),
    "timeout of 0": ({"remote_timeout_s": 0}, {}, 422),
    "long note": ({"note": "x" * 501}, {}, 422),
    "other gate": ({"threshold": 0.5, "gate_digest": "0" * 64}, {}, 409),
    "not the current version": ({"threshold": 0.5}, {"if-match": '"1000000"'}, 412),
    "no ETag": ({"threshold": 0.5}, {"if-match": "seven"}, 412),
    "form": ({"threshold": 0.5}, {"content-type": "application/x-www-form-urlencoded"}, 415),
    "wrong token": ({"threshold": 0.5}, {"authorization": "Bearer wrong"}, 401),
    "strange token": ({"threshold": 0.5}, {"authorization": "Bearer \u00fc"}, 401),
    "other scheme": ({"threshold": 0.5}, {"authorization": f"Basic {TOKEN}"}, 401),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_changes_are_refused_and_change_nothing(client: httpx.Client, name: str) -> None:
    body, headers, status = BAD[name]
    before = admin(client, "GET", "policy").content
    encoded = {key: value.encode("latin-1") for key, value in headers.items()}
    response = admin(client, "PATCH", "policy", json=body, headers=encoded)
    assert response.status_code == status, response.text
    assert Problem.model_validate_json(response.content).status == status
    assert admin(client, "GET", "policy").content == before


@pytest.mark.parametrize(
    ("body", "status"),
    [(b'{"threshold": NaN}', 422), (b"nope", 400), (b'{"note": "\xff"}', 400), (b"[]", 422), (b"", 400)],
)
def test_bodies_that_are_no_policy_are_refused(client: httpx.Client, body: bytes, status: int) -> None:
    response = admin(client, "PATCH", "policy", content=body, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text


def test_without_a_token_nothing_is_told(client: httpx.Client) -> None:
    for method, path in (("GET", "policy"), ("PATCH", "policy"), ("GET", "status"), ("GET", "policy/history")):
        response = client.request(method, f"/admin/v1/{path}", json={})
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert "threshold" not in response.text
