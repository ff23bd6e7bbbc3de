"""Labels that look alike stay apart and are named; any label that a file can hold is taken or refused in a line."""

import json
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.loading import refusal
from support.tiny import write_csv

from models.data.datasets import load_dataset
from models.data.labels import in_order, look, look_alikes
from service.cli import main

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def labelled(path: Path, *labels: str) -> Path:
    return write_csv(path, [(f"text {n} of {label}", label) for n in range(10) for label in labels])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (COMPOSED, DECOMPOSED),
        *((COMPOSED, f"{COMPOSED}{hidden}") for hidden in "\u200b\u200d\ufeff\u2060\u00ad"),
        ("1", "1.0"),
        ("1", "01"),
        ("1.5", "1.50"),
        ("3", "\u0663"),
        ("True", "true"),
        ("Spam", "SPAM"),
        ("spam", "spam."),
        ("card arrival", "card_arrival"),
        ("card-arrival", "card  arrival"),
        ("ham", "h\u0430m"),  # a Cyrillic a
        ("\uff28am", "Ham"),
    ],
    ids=ascii,
)
def test_labels_that_look_alike_are_two_classes_and_one_note(tmp_path: Path, one: str, other: str) -> None:
    data = load_dataset(str(labelled(tmp_path / "own.csv", one, other, "tea")), None)
    assert set(data.labels) == {one, other, "tea"}
    (note,) = data.notes
    assert note.startswith("these labels look alike")
    assert f"{one!a} (10)" in note
    assert f"{other!a} (10)" in note
    assert "tea" not in note


@pytest.mark.parametrize(
    "labels", [("A", "A-", "A+"), ("1", "-1"), ("1", "10"), ("a b", "ab"), ("m2", "m3"), ("", " x")]
)
def test_labels_that_differ_are_no_pair(labels: tuple[str, ...]) -> None:
    assert len({look(label) for label in labels}) == len(labels)


def test_the_note_stays_short() -> None:
    note = look_alikes(
        {f"{letter}{dots}": 1 for letter in "abcdefgh" for dots in ("", ".", "..", "...", "....", ".....")}
    )
    assert note is not None
    assert "and 2 more; " in note
    assert "; and 5 more groups. " in note
    assert len(look_alikes({"x" * 10_000: 1, "X" * 10_000: 1}) or "") < 400
    assert look_alikes({"0" * 10_000: 1, "0" * 9_999 + "1": 1}) is None


def test_the_note_reaches_the_terminal_as_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = labelled(tmp_path / "own.csv", "tea", "tea\u200b")
    assert main(["evaluate", "models/bundles/clinc150-small", "--data", str(path)]) == 2
    note, last = capsys.readouterr().err.splitlines()
    assert note.startswith("note: these labels look alike")
    assert r"'tea\u200b'" in note
    assert last.startswith("gatekeeper: the labels of own.csv are not those of the bundle")


def test_a_label_of_another_split_that_only_looks_like_one_of_train_is_told(tmp_path: Path) -> None:
    labelled(tmp_path / "train.csv", COMPOSED, "tea")
    labelled(tmp_path / "test.csv", DECOMPOSED)
    said = refusal(tmp_path)
    assert "occurs in test and not in train" in said
    assert f"{COMPOSED!a} looks like {DECOMPOSED!a}: give them one spelling" in said


def test_numbers_are_the_same_labels_in_every_kind_of_table(tmp_path: Path) -> None:
    """As they stand there: nothing becomes another number."""
    texts = [f"text {n}" for n in range(40)]
    for values in ([1, 2], [1.0, 2.5], [True, False], ["01", "1e3"], [-1, 1], [2**63, 5]):
        labels = [values[n % 2] for n in range(40)]
        (tmp_path / "own.jsonl").write_text(
            "".join(
                json.dumps({"text": text, "label": label}) + "\n" for text, label in zip(texts, labels, strict=True)
            ),
            encoding="utf-8",
        )
        kind = pa.uint64() if 2**63 in values else None
        pq.write_table(pa.table({"text": texts, "label": pa.array(labels, kind)}), tmp_path / "own.parquet")
        write_csv(tmp_path / "own.csv", zip(texts, labels, strict=True))
        loaded = [load_dataset(str(tmp_path / f"own.{suffix}"), None) for suffix in ("csv", "jsonl", "parquet")]
        assert {data.labels for data in loaded} == {tuple(in_order(str(value) for value in values))}
        assert len({data.content_hash for data in loaded}) == 1


def test_labels_of_thousands_of_digits_stand_in_their_order(tmp_path: Path) -> None:
    long, longer = "9" * 5_000, "1" * 5_001
    path = labelled(tmp_path / "own.csv", longer, "0", long, "2")
    assert load_dataset(str(path), None).labels == ("0", "2", long, longer)
    rows = [f'{{"text": "{n} {label[:2]}", "label": {label}}}' for n in range(10) for label in (long, longer, "2")]
    (tmp_path / "own.jsonl").write_text("\n".join(rows), encoding="utf-8")
    assert load_dataset(str(tmp_path / "own.jsonl"), None).labels == ("2", long, longer)
    assert in_order(["10", "\u0663", "2", "02"]) == ("02", "2", "\u0663", "10")


@pytest.mark.slow
@pytest.mark.parametrize("length", [10_001, 3_000_000])
def test_a_label_longer_than_the_edge_takes_is_refused(tmp_path: Path, length: int) -> None:
    said = refusal(labelled(tmp_path / "own.csv", "ham", "x" * length))
    assert f"line 3: the column 'label' holds {length:,} characters, and a label has 10,000 at most" in said
    assert len(said) < 300


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("null", "the column 'label' is empty"),
        ('""', "the column 'label' is empty"),
        ('" "', "the column 'label' is empty"),
        ("NaN", "the column 'label' is empty"),
        ('["a", "b"]', "holds a list; an item has one label, not several"),
        ('{"a": 1}', "holds a dict, not a text"),
    ],
)
def test_what_is_no_label_is_refused_with_its_line(tmp_path: Path, label: str, message: str) -> None:
    rows = [*(f'{{"text": "{n}", "label": {n % 2}}}' for n in range(9)), f'{{"text": "a", "label": {label}}}']
    (tmp_path / "own.jsonl").write_text("\n".join(rows), encoding="utf-8")
    said = refusal(tmp_path / "own.jsonl")
    assert "line 10: " in said
    assert message in said
