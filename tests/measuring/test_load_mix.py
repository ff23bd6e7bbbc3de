"""What a load test sends and how it counts what comes back, without a server; shapes are in test_load_shapes.py."""

import io
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from loadtests.common import datasets, silhouettes
from loadtests.common.answers import read_answer
from loadtests.common.sentences import EASY_LABELS, HARD_LABELS, ODD
from loadtests.users import choice, mix, stages, stock
from loadtests.users.phases import Phases
from loadtests.users.tally import Tally, percentile

ROOT = Path(__file__).resolve().parent.parent.parent
OUTPUT = {
    "label": "balance",
    "score": 0.9,
    "confidence": 0.9,
    "decision": "accepted",
    "answered_by": "small",
    "reason": None,
    "small": {"label": "balance", "score": 0.9},
}
DEFERRED = {"decision": "deferred", "answered_by": "large", "reason": "below_threshold", "label": "apr"}
DEGRADED = {"decision": "degraded", "reason": "remote_timeout"}


def answer(*changes: dict[str, Any], policy_version: int | None = 1) -> Any:
    document = {"id": "a", "model": "m", "policy_version": policy_version, "threshold": 0.5}
    outputs = [OUTPUT | change for change in changes]
    return read_answer(json.dumps(document | {"outputs": outputs}).encode(), len(changes))


def labels_of(bundle: str) -> set[str]:
    return set(json.loads((ROOT / "models" / "bundles" / bundle / "gatekeeper.json").read_text())["labels"])


def test_every_right_label_is_one_of_the_models() -> None:
    assert set(EASY_LABELS.values()) | set(HARD_LABELS.values()) <= labels_of("clinc150-small")
    assert set(silhouettes.CLASSES) == labels_of("fashion-mnist-small")
    texts = [*EASY_LABELS, *HARD_LABELS, *ODD]
    assert len(set(texts)) == len(texts)


def test_drawings_are_28_x_28_grey_png_and_the_same_for_a_seed() -> None:
    for label in silhouettes.CLASSES:
        drawn = silhouettes.pictures(label, 3)
        assert drawn == silhouettes.pictures(label, 3)
        assert len(set(drawn)) == 3
        image = Image.open(io.BytesIO(drawn[0]))
        assert (image.format, image.mode, image.size) == ("PNG", "L", (28, 28))
        low, high = image.getextrema()
        assert (low, high > 100) == (0, True), "something bright on black"


def test_a_mix_is_weights_by_kind() -> None:
    assert mix.parse("easy=12, odd=3,malformed=0") == {"easy": 12, "odd": 3, "malformed": 0}
    offered = {"easy": 12, "odd": 3, "malformed": 1}
    assert mix.fitting("", offered, "they") == offered
    assert mix.fitting("easy=2,odd=0,file=0", offered, "they") == {"easy": 2}
    with pytest.raises(mix.BadMix, match="names 'file', and they have easy, odd, malformed only"):
        mix.fitting("file=1", offered, "they")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "'nonsense' .* is no kind=weight"),
        ("easy=-1", "is no kind=weight"),
        ("easy=1.5", "is no kind=weight"),
        ("easy=1,", "'' in the mix"),
        ("easy=1,esay=2", "names 'esay', and there are easy"),
        ("easy=1,easy=2", "names 'easy' twice"),
        ("easy=0,odd=0", "sends nothing"),
        ("easy=1001", "more than 1,000"),
    ],
)
def test_a_mix_that_is_nonsense_is_told(text: str, message: str) -> None:
    with pytest.raises(mix.BadMix, match=message) as raised:
        mix.parse(text)
    assert "\n" not in str(raised.value)


def test_data_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(datasets.VARIABLE, raising=False)
    options = Namespace(data=None, sentences="clinc150", images="auto", mix="", key=None, request_timeout_ms=0)
    with pytest.raises(choice.WrongUse, match=r"needs GATEKEEPER_DATA_DIR, .* clinc150/data_full\.json"):
        choice.choose(choice.TEXTS, options)
    assert choice.choose(choice.IMAGES, options)[0].stock.name == "drawings of this project"
    (tmp_path / "fashion-mnist").mkdir()
    monkeypatch.setenv(datasets.VARIABLE, str(tmp_path))
    with pytest.raises(choice.WrongUse, match="fashion-mnist cannot be read"):
        choice.choose(choice.IMAGES, options)


@pytest.mark.skipif(datasets.path_of("fashion-mnist") is None, reason="GATEKEEPER_DATA_DIR holds no fashion-mnist")
def test_real_images_come_with_their_labels() -> None:
    goods = stock.images("auto")
    assert (goods.name, len(goods.items["easy"])) == ("Fashion-MNIST's test images", 10_000)
    assert goods.labels["easy"][:3] == ("Ankle boot", "Pullover", "Trouser")  # type: ignore[index]
    assert Image.open(io.BytesIO(goods.items["easy"][0])).size == (28, 28)  # type: ignore[arg-type]


@pytest.mark.skipif(datasets.path_of("clinc150") is None, reason="GATEKEEPER_DATA_DIR holds no clinc150")
def test_test_sentences_come_with_their_labels_and_out_of_scope_queries_without() -> None:
    goods = stock.sentences("clinc150")
    assert {kind: len(items) for kind, items in goods.items.items()} == {"easy": 4_500, "odd": 1_000}
    assert set(goods.labels["easy"]) <= labels_of("clinc150-small")  # type: ignore[arg-type]
    assert goods.labels["odd"] is None
    assert "hard" not in goods.weights


def test_the_tallies_of_workers_add_up_and_are_given_once() -> None:
    workers, master = (Tally(), Tally()), Tally()
    workers[0].add("list", answer({}, DEFERRED, DEGRADED), [None, None, None])
    workers[1].add("easy", answer({}), [None])
    for _ in range(2):  # the second report has nothing new
        for worker in workers:
            master.merge(json.loads(json.dumps(worker.take())))
    assert master.summary().startswith("deferral ratio 0.50 (2 of 4 items), degraded 1 (remote_timeout 1), joint")
    assert [(row.name, row.items) for row in master.rows()] == [("easy", 1), ("list", 3), ("all", 4)]
    master.clear()
    assert master.summary().startswith("deferral ratio unknown (0 of 0 items), degraded 0, joint accuracy unknown")


def test_joint_accuracy_is_of_the_answers_and_of_labelled_items_alone() -> None:
    tally = Tally()
    # The large model is right about one, wrong about one; the degraded answer is the small model's, and right.
    tally.add("list", answer({}, DEFERRED, DEFERRED, DEGRADED, {}), ["balance", "apr", "balance", "balance", None])
    row = tally.row("all")
    assert (row.labelled, row.joint_accuracy, row.small_accuracy) == (4, 0.75, 0.75)
    assert "joint accuracy 0.7500 (4 labelled items; the small model alone 0.7500)" in tally.summary()


def test_percentiles_are_of_the_requests() -> None:
    assert percentile([(1.0, 98), (5.0, 1), (9.0, 1)], 0.5) == 1.0
    assert percentile([(1.0, 98), (5.0, 1), (9.0, 1)], 0.99) == 5.0
    assert percentile([(1.0, 98), (5.0, 1), (9.0, 1)], 1.0) == 9.0
    assert percentile([], 0.5) is None


def test_a_request_that_lay_across_a_change_is_in_no_row_but_for_the_outage_that_claims_it() -> None:
    phases = Phases()
    early = phases.moment()
    phases.change("before")
    before = phases.moment()
    assert phases.phase_since(before) == "before"
    assert phases.phase_since(early) == ""
    phases.change("during", claims=True)
    during = phases.moment()
    assert [phases.phase_since(sent) for sent in (before, during)] == ["during", "during"]
    phases.change("after")
    assert [phases.phase_since(sent) for sent in (before, during, phases.moment())] == ["during", "during", "after"]
    phases.clear()
    assert [phases.phase_since(sent) for sent in (before, during, phases.moment())] == ["during", "during", ""]


def test_a_phase_with_a_policy_version_has_the_items_that_were_decided_under_it() -> None:
    now, tally = [0.0], Tally()
    phases = Phases(clock=lambda: now[0])
    phases.count("0.5", 2, policy_version=7)
    now[0] = 4.0
    phases.close()
    phases.count("0.9", 2, policy_version=8)
    now[0] = 5.0
    tally.add("easy", answer({}, policy_version=6), [None], "", 1.0)
    tally.add("list", answer({}, DEFERRED, policy_version=7), [None, None], "0.9", 12.344)
    tally.add("easy", answer({}, policy_version=7), [None], "", 2.0)
    tally.add("easy", answer(DEGRADED, policy_version=8), [None], "0.9", 30.0)
    tally.add_failure("0.9")
    first, second = phases.rows(tally)
    assert (first.seconds, first.requests, first.items, first.requests_per_s) == (4.0, 2, 3, 0.5)
    assert (first.deferral_ratio, first.degraded_share, first.p50_ms, first.p99_ms) == (1 / 3, 0.0, 2.0, 12.3)
    assert (second.seconds, second.items, second.failures) == (1.0, 1, 1)
    assert (second.degraded_share, second.degraded_by_reason) == (1.0, "remote_timeout=1")
    assert phases.elsewhere(tally) == 1


@pytest.mark.parametrize("users", [1, 3, 40])
def test_shapes_scale_with_users_and_seconds(users: int) -> None:
    thresholds = (0.1, 0.9)
    for found in (
        stages.steady(users, 30),
        stages.ramp(users, 30),
        stages.spike(users, 30),
        stages.threshold_sweep(users, 30, thresholds),
        stages.large_model_outage(users, 30),
    ):
        assert sum(stage.seconds for stage in found) == pytest.approx(30)
        assert max(stage.users for stage in found) == users
        assert min(stage.users for stage in found) >= 1
        assert len({stage.name for stage in found}) == len(found)
    assert [stage.threshold for stage in stages.threshold_sweep(users, 30, thresholds)] == [0.1, 0.9]
    assert [stage.outage for stage in stages.large_model_outage(users, 30)] == [False, True, False]


@pytest.mark.parametrize("text", ["", "a,b", "0.5,", "0.5,0.5", "nan", "inf"])
def test_thresholds_that_are_nonsense_are_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"thresholds like|twice|finite"):
        stages.thresholds(text)
