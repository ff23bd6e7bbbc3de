"""What a policy, a patch and a replacement may say."""

from typing import Any

import pytest
from pydantic import ValidationError
from support.policies import a_policy

from service.policy.document import PolicyPatch, PolicyReplacement


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), True, "0.5", None, 10**400])
def test_a_threshold_is_a_finite_number(threshold: object) -> None:
    for document in (PolicyPatch, PolicyReplacement):
        with pytest.raises(ValidationError):
            document.model_validate({"threshold": threshold})


def test_null_is_refused_with_advice() -> None:
    with pytest.raises(ValidationError, match="must not be null: leave the field out"):
        PolicyPatch.model_validate({"note": None})


@pytest.mark.parametrize(
    "change",
    [
        {"remote_timeout_s": 0},
        {"remote_timeout_s": 600.1},
        {"deferral": True},
        {"on_remote_failure": "explode"},
        {"note": "x" * 501},
        {"gate_digest": ""},
        {"surprise": 1},
    ],
)
def test_a_field_out_of_its_bounds_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PolicyPatch.model_validate(change)
    with pytest.raises(ValidationError):
        a_policy(1, **change)


def test_a_patch_cannot_set_what_the_server_keeps() -> None:
    for field in ("version", "updated_at", "updated_by"):
        with pytest.raises(ValidationError):
            PolicyPatch.model_validate({field: 7})


def test_a_policy_sent_back_as_it_was_read_is_a_valid_replacement() -> None:
    policy = a_policy(7, note="as read", deferral="off")
    changes = PolicyReplacement.model_validate_json(policy.model_dump_json()).changes()
    assert changes == policy.model_dump(exclude={"version", "updated_at", "updated_by"})


def test_the_schema_of_a_patch_allows_no_null_and_promises_no_default() -> None:
    for field in PolicyPatch.model_json_schema()["properties"].values():
        assert "anyOf" not in field
        assert "default" not in field


def test_moments_are_kept_in_utc() -> None:
    policy = a_policy(1, updated_at="2026-01-02T03:00:00+02:00")
    assert policy.model_dump(mode="json")["updated_at"] == "2026-01-02T01:00:00Z"
    with pytest.raises(ValidationError):
        a_policy(1, updated_at="2026-01-02T03:00:00")
