"""Data of every kind becomes train, select, calibrate and test, each time the same."""

import csv
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from support.loading import ROWS, pairs, refusal, sizes, splits
from support.tiny import tiny_rows, write_csv, write_tiny_clinc150, write_tiny_csv, write_tiny_images

from models.data.datasets import load_dataset

ROOT = Path(__file__).resolve().parent.parent.parent
DATA_DIR = Path(os.environ.get("GATEKEEPER_DATA_DIR", "nowhere"))


def test_a_named_dataset_needs_its_folder(tmp_path: Path) -> None:
    """Without a data directory the message says what to give, the hub included; else which folder is missing."""
    assert "--data-dir" in refusal("clinc150")
    assert "OWNER/NAME" in refusal("clinc150")
    for name, folder in (("cifar10", "cifar10-jpeg"), ("fashion-mnist", "fashion-mnist"), ("banking77", "banking77")):
        assert f"{tmp_path / folder} does not exist" in refusal(name, tmp_path)
        (tmp_path / folder).mkdir()
        assert f"{tmp_path / folder}/" in refusal(name, tmp_path)


def test_an_unknown_name_lists_what_there_is() -> None:
    for name in ("clinc", "", "x\0y"):
        assert f"unknown dataset {name!r}; there is banking77, cifar10, clinc150, fashion-mnist" in refusal(name)


@pytest.mark.parametrize("data", ["own.csv", "data/own.parquet", "./own", "/nowhere/own", "a/b/c", "own/", "b/set.zip"])
def test_what_looks_like_a_path_is_never_asked_of_the_hub(data: str) -> None:
    assert refusal(data) == f"there is no file or directory {data}"


@pytest.mark.parametrize("data", ["a" * 300, "~nobody-of-that-name/own"])
def test_a_path_that_cannot_be_looked_up_is_refused(data: str) -> None:
    assert refusal(data).startswith(f"{data} cannot be read: ")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text")
    assert "must end in .csv, .jsonl" in refusal(tmp_path / "notes.txt")


def test_clinc150_keeps_its_splits(tmp_path: Path) -> None:
    data = load_dataset("clinc150", write_tiny_clinc150(tmp_path))
    assert sizes(data) == [96, 12, 12, 24]
    assert data.train.inputs == tuple(text for text, _ in tiny_rows())
    assert data.out_of_scope == ("do fish dream", "paint it black")
    assert Counter(data.select.labels) == Counter(data.calibrate.labels) == {0: 4, 1: 4, 2: 4}
    # What it was before other kinds of data could be read: bundles name it.
    assert data.content_hash == "074a8456070d28b4075fdd172ae988ebfcce08fd7d252044f7092bd925bc5348"
    (tmp_path / "clinc150" / "data_full.json").write_text('{"train": [["only"]]}')
    assert "not CLINC150's data_full.json" in refusal("clinc150", tmp_path)


def test_banking77_has_quoted_newlines_and_a_list_of_categories(tmp_path: Path) -> None:
    rows = [(f"line one\nline two, {text}", label) for text, label in ROWS]
    write_csv(tmp_path / "banking77" / "train.csv", rows, ("text", "category"))
    write_csv(tmp_path / "banking77" / "test.csv", [("a test", "ham")], ("text", "category"))
    categories = tmp_path / "banking77" / "categories.json"
    categories.write_text('["spam", "ham"]')
    data = load_dataset("banking77", tmp_path)
    assert sizes(data) == [32, 4, 4, 1]
    assert data.train.inputs[0] == rows[0][0]
    categories.write_text('["spam"]')
    assert "categories.json does not list the categories" in refusal("banking77", tmp_path)


def test_a_fifth_of_each_label_is_set_aside(tmp_path: Path) -> None:
    """In the order of the source, the same at every load; nothing is lost and nothing doubled."""
    rows = [(f"{label} {n}", label) for label, count in (("a", 100), ("b", 50), ("c", 25)) for n in range(count)]
    data = load_dataset(str(write_csv(tmp_path / "own.csv", rows)), None)
    assert sorted(pairs(data)) == sorted(rows)
    assert [sorted(Counter(split.labels).items()) for split in splits(data).values()] == [
        [(0, 64), (1, 32), (2, 16)],
        [(0, 8), (1, 4), (2, 2)],
        [(0, 8), (1, 4), (2, 2)],
        [(0, 20), (1, 10), (2, 5)],
    ]
    order = [text for text, _ in rows]
    for split in splits(data).values():
        assert list(split.inputs) == sorted(split.inputs, key=order.index)
    assert list(data.test.inputs[:20]) != order[:20]


def test_a_rare_label_stays_in_train(tmp_path: Path) -> None:
    """One or two rows all go there; of three or four at least two do."""
    rare = [
        (f"{label} {n}", label) for label, count in (("r1", 1), ("r2", 2), ("r3", 3), ("r4", 4)) for n in range(count)
    ]
    data = load_dataset(str(write_csv(tmp_path / "own.csv", [*rare, *ROWS])), None)
    assert data.labels == ("ham", "r1", "r2", "r3", "r4", "spam")
    train = Counter(data.labels[label] for label in data.train.labels)
    assert (train["r1"], train["r2"]) == (1, 2)
    assert train["r3"] >= 2
    assert train["r4"] >= 2
    assert abs(len(data.test) - 10) <= 1


def test_many_labels_of_few_rows_still_give_a_test_split(tmp_path: Path) -> None:
    rows = [(f"{label} {n}", f"label {label}") for label in range(50) for n in range(4)]
    assert sizes(load_dataset(str(write_csv(tmp_path / "own.csv", rows)), None)) == [128, 16, 16, 40]


@pytest.mark.parametrize("per_label", [1, 2, 3, 4, 5])
def test_too_few_rows_say_how_many_are_needed(tmp_path: Path, per_label: int) -> None:
    path = write_csv(tmp_path / "own.csv", [(f"{n} {label}", label) for n in range(per_label) for label in "ab"])
    if per_label < 4:
        assert f"{2 * per_label} rows of 2 labels are too few" in refusal(path)
        assert "at least two labels need 4 rows or more" in refusal(path)
    else:
        assert min(sizes(load_dataset(str(path), None))) >= 1


def test_one_validation_row_cannot_be_halved(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ROWS)
    write_csv(tmp_path / "validation.csv", ROWS[:1])
    assert "the split validation has one row" in refusal(tmp_path)


def test_one_label_alone_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "own.csv", [(f"text {n}", "ham") for n in range(30)])
    assert "every training row has the label 'ham'; two labels or more are needed" in refusal(path)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_label_that_train_lacks_is_named_with_its_split(tmp_path: Path, split: str) -> None:
    write_csv(tmp_path / "train.csv", ROWS)
    write_csv(tmp_path / f"{split}.csv", [*ROWS, ("one", "eggs"), ("two", "toast")])
    assert f"the label 'eggs' (and 1 more) occurs in {split} and not in train" in refusal(tmp_path)


def test_texts_that_occur_twice_are_noted(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [*ROWS, ("both", "ham"), ("both", "spam"), ("twice", "ham"), ("twice", "ham")])
    write_csv(tmp_path / "validation.csv", [("both", "ham"), ("new", "ham")])
    write_csv(tmp_path / "test.csv", [*ROWS[:2], ("fresh", "spam")])
    (split,) = [
        split for split in ("select", "calibrate") if "both" in getattr(load_dataset(str(tmp_path), None), split).inputs
    ]
    assert load_dataset(str(tmp_path), None).notes == (
        f"1 text occurs in train and in {split}",
        "2 texts occur in train and in test",
        "1 text occurs in train with different labels",
    )
    assert load_dataset(str(write_tiny_csv(tmp_path / "own.csv")), None).notes == ()


def test_the_hash_is_over_texts_labels_and_splits(tmp_path: Path) -> None:
    rows = tiny_rows()
    changed = [
        rows,
        [("another text", rows[0][1]), *rows[1:]],
        [(rows[0][0], rows[-1][1]), *rows[1:]],
        [*rows[1:], rows[0]],
    ]
    hashes = [load_dataset(str(write_csv(tmp_path / "own.csv", some)), None).content_hash for some in changed]
    assert len(set(hashes)) == len(changed)


def test_two_processes_divide_alike(tmp_path: Path) -> None:
    """Python's own hash seed, which differs from process to process, decides nothing."""
    write_tiny_csv(tmp_path / "own.csv")
    code = "import sys; from models.data.datasets import load_dataset as load; "
    code += "print(*(load(data, None).content_hash for data in sys.argv[1:]))"
    command = [
        sys.executable,
        "-c",
        code,
        str(tmp_path / "own.csv"),
        str(write_tiny_images(tmp_path / "images", False)),
    ]
    printed = {
        subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in "12"
    }
    assert len(printed) == 1
    assert len(printed.pop().split()) == 2


real = pytest.mark.skipif(not (DATA_DIR / "clinc150").is_dir(), reason="GATEKEEPER_DATA_DIR has no datasets")


@real
def test_real_clinc150() -> None:
    data = load_dataset("clinc150", DATA_DIR)
    assert sizes(data) == [15000, 1500, 1500, 4500]
    assert data.content_hash == "6e4c3e6d3e0d26ba5e0b2d55a6be241f1d18717ad46b3943c91262496a6a564e"
    assert data.notes == ("3 texts occur in train and in select", "2 texts occur in train and in test")


@real
@pytest.mark.skipif(not (DATA_DIR / "banking77").is_dir(), reason="GATEKEEPER_DATA_DIR has no banking77")
def test_real_banking77() -> None:
    data = load_dataset("banking77", DATA_DIR)
    assert sizes(data) == [8002, 1000, 1001, 3080]
    assert len(data.labels) == 77
    with (DATA_DIR / "banking77" / "test.csv").open(newline="") as file:
        assert list(data.test.inputs) == [row["text"] for row in csv.DictReader(file)]


@real
@pytest.mark.skipif(not (DATA_DIR / "fashion-mnist").is_dir(), reason="GATEKEEPER_DATA_DIR has no fashion-mnist")
def test_real_fashion_mnist() -> None:
    data = load_dataset("fashion-mnist", DATA_DIR)
    assert sizes(data) == [48000, 6000, 6000, 10000]
    assert set(Counter(data.train.labels).values()) == {4800}
    assert data.content_hash == "474b046a299e7a3d5c8dfac36e6ca48edac18d74c5fd17db590dfd1de85b9397"


@real
@pytest.mark.slow
@pytest.mark.skipif(not (DATA_DIR / "cifar10-jpeg").is_dir(), reason="GATEKEEPER_DATA_DIR has no cifar10-jpeg")
def test_real_cifar10() -> None:
    """JPEG decoders may differ in the last bit, so its hash belongs to a version of Pillow and is not held."""
    data = load_dataset("cifar10", DATA_DIR)
    assert sizes(data) == [40000, 5000, 5000, 10000]
    assert set(Counter(data.test.labels).values()) == {1000}
    assert data.train.inputs.shape == (40000, 32, 32, 3)
