"""What a policy, a patch and a replacement may say, and what is kept of a document that says more."""

import json
from typing import Any

import pytest
from pydantic import ValidationError
from support.policies import a_policy

from service.api.status import PolicyInForce
from service.policy.document import OperatorFields, Policy, PolicyPatch, PolicyReplacement, read_document


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
    ],
)
def test_a_field_out_of_its_bounds_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PolicyPatch.model_validate(change)
    with pytest.raises(ValidationError):
        a_policy(1, **change)


@pytest.mark.parametrize("document", [PolicyPatch, PolicyReplacement])
def test_a_field_that_is_not_known_is_refused_by_its_name(document: type[PolicyPatch | PolicyReplacement]) -> None:
    with pytest.raises(ValidationError) as refused:
        document.model_validate({"threshold": 0.5, "surprise": 1})
    assert [error["loc"] for error in refused.value.errors()] == [("surprise",)]


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


# As releases before this one have written it.
OF_BEFORE = (
    b'{"version":3,"gate_digest":"gate-a","threshold":0.30000000000000004,"deferral":"off","on_remote_failure":"fail",'
    b'"remote_timeout_s":2.5,"note":"why","updated_at":"2026-01-02T00:00:00.000001Z","updated_by":"admin"}'
)
# As a later one might: values of all kinds, and names that mean something in Python.
OF_LATER = (
    OF_BEFORE[:-1] + b',"cap":{"day":5.0,"tags":["a",null,true,1e+300,-0.0,12345678901234567890]},"model_dump":"x",'
    b'"note ":"\xc3\xa9\\u0000","wishes":[[[]]],"copy":0,"self":null,"":1}'
)


@pytest.mark.parametrize("document", [OF_BEFORE, OF_LATER], ids=["before", "later"])
def test_a_document_of_another_release_is_written_as_it_was_read(document: bytes) -> None:
    policy = read_document(document)
    assert (policy.version, policy.threshold, policy.deferral) == (3, 0.1 + 0.2, "off")
    assert policy.model_dump_json().encode() == document
    again = read_document(policy.model_copy(update={"version": 4}).model_dump_json().encode())
    assert again == policy.model_copy(update={"version": 4})


def test_a_patch_keeps_what_is_not_known_and_a_replacement_takes_its_default() -> None:
    before, later = read_document(OF_BEFORE), read_document(OF_LATER)
    unknown = json.loads(OF_LATER).keys() - json.loads(OF_BEFORE).keys()
    assert len(unknown) == 7
    patched = later.patched({"threshold": 0.5})
    assert patched.model_extra == later.model_extra
    assert patched == later.model_copy(update={"threshold": 0.5, "note": ""})
    assert later.patched({}) is later
    replaced = later.replaced(PolicyReplacement(threshold=0.5).changes())
    assert replaced == before.replaced(PolicyReplacement(threshold=0.5).changes())
    assert not replaced.model_extra
    assert later.wishes().keys() - before.wishes().keys() == unknown


def test_two_policies_that_differ_only_in_what_is_not_known_differ() -> None:
    assert read_document(OF_LATER) != read_document(OF_LATER.replace(b'"copy":0', b'"copy":1'))


@pytest.mark.parametrize("value", [b"NaN", b"[1, -Infinity]", b"1e999", b"[" * 5_000])
def test_what_is_no_json_makes_a_document_unreadable_wherever_it_stands(value: bytes) -> None:
    with pytest.raises(ValueError, match="JSON"):
        read_document(OF_BEFORE[:-1] + b',"cap":' + value + b"}")


@pytest.mark.parametrize("document", [Policy, PolicyPatch, PolicyReplacement, PolicyInForce])
def test_every_document_has_every_field_of_the_operator(document: type[OperatorFields]) -> None:
    fields = OperatorFields.model_json_schema()["properties"]
    found = document.model_json_schema()["properties"]
    for name, field in fields.items():
        assert found[name].items() <= field.items(), name


def test_every_field_of_the_operator_but_the_threshold_has_a_default() -> None:
    """So that a document of before, which does not have the field, is read, and a patch may leave it out."""
    assert [name for name, field in OperatorFields.model_fields.items() if field.is_required()] == ["threshold"]
