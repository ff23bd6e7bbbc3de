"""Folders as the hub and its library leave them: all shards of a split, class names, images in tables, or a line."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.loading import pairs, refusal, sizes
from support.tiny import jpeg, tiny_images, write_csv, write_tiny_images

from models.data import parquet_files
from models.data.datasets import load_dataset
from models.data.images import ImageFiles

NAMES = ("spam", "ham", "unused")


def rows(start: int, count: int = 20) -> list[tuple[str, str]]:
    return [(f"text {n}", ("spam", "ham")[n % 2]) for n in range(start, start + count)]


def shard(path: Path, start: int, count: int = 20, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts, labels = zip(*rows(start, count), strict=True)
    pq.write_table(pa.table({"text": texts, "label": labels, **more}), path)
    return path


def named(path: Path, numbers: list[int | None], names: tuple[str, ...] = NAMES) -> Path:
    """A file as the library `datasets` writes one with a ClassLabel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    label = {"names": names, "_type": "ClassLabel"}
    about = {"info": {"features": {"text": {"dtype": "string", "_type": "Value"}, "label": label}}}
    table = pa.table(
        {"text": [f"{path.stem} {n}" for n in range(len(numbers))], "label": pa.array(numbers, pa.int64())}
    )
    pq.write_table(table.replace_schema_metadata({b"huggingface": json.dumps(about).encode()}), path)
    return path


# ---- shards


@pytest.mark.parametrize("folder", [".", "data", "default", "train"])
@pytest.mark.parametrize("form", ["train-{:05}-of-00002", "train-{:05}-of-00002-0123456789abcdef", "train_{}"])
def test_every_shard_of_a_split_is_read(tmp_path: Path, folder: str, form: str) -> None:
    """Wherever the hub puts them, in their order."""
    for number in (0, 1):
        shard(tmp_path / "own" / folder / f"{form.format(number)}.parquet", 20 * number)
    data = load_dataset(str(tmp_path / "own"), None)
    assert sorted(pairs(data)) == sorted(rows(0, 40))
    assert data.name == "own"
    assert data.notes == (
        (f"{tmp_path / 'own/default'} is what is read of {tmp_path / 'own'}",) if folder == "default" else ()
    )
    one = tmp_path / "one.parquet"
    shard(one, 0, 40)
    assert load_dataset(str(one), None).content_hash == data.content_hash


def test_several_splits_are_divided_as_one_file_each_is(tmp_path: Path) -> None:
    for number in range(12):
        shard(tmp_path / "data" / f"train-{number:05}-of-00012.parquet", 20 * number)
    shard(tmp_path / "data" / "validation-00000-of-00001.parquet", 300)
    shard(tmp_path / "data" / "test-00000-of-00001.parquet", 400)
    shard(tmp_path / "data" / "unsupervised-00000-of-00001.parquet", 500)
    (tmp_path / "README.md").write_text("about", encoding="utf-8")
    data = load_dataset(str(tmp_path), None)
    assert sizes(data) == [240, 10, 10, 20]
    assert data.train.inputs == tuple(text for text, _ in rows(0, 240))
    left = "unsupervised-00000-of-00001.parquet is not read: it is named after no split"
    assert data.notes == (f"{tmp_path / 'data'}: {left}",)


@pytest.mark.parametrize(
    ("numbers", "form", "message"),
    [
        (
            (0,),
            "train-{:05}-of-00002",
            "has 1 of the 2 files of train, such as train-00000-of-00002.parquet; number 1 is missing",
        ),
        ((1,), "train-{:05}-of-00002", "number 0 is missing"),
        ((0, 3), "train-{:05}-of-999999999", "has 2 of the 999,999,999 files of train"),
        ((0, 2), "train-{:05}", "has 2 of the 3 files of train"),
        ((1, 2, 4), "train_{}", "has 3 of the 4 files of train"),
    ],
)
def test_a_shard_that_did_not_arrive_is_missed(
    tmp_path: Path, numbers: tuple[int, ...], form: str, message: str
) -> None:
    for number in numbers:
        shard(tmp_path / "data" / f"{form.format(number)}.parquet", 20 * number)
    assert message in refusal(tmp_path)


def test_half_a_shard_and_one_with_other_columns_are_named(tmp_path: Path) -> None:
    first, second = (shard(tmp_path / f"train-0000{n}-of-00002.parquet", 20 * n) for n in (0, 1))
    content = second.read_bytes()
    second.write_bytes(content[: len(content) // 2])
    assert refusal(tmp_path).startswith(f"{second} is damaged, or not a parquet file")
    pq.write_table(pa.table({"sentence": ["a"], "label": ["spam"]}), second)
    assert f"{second} has no column 'text'; there is 'sentence', 'label'" in refusal(tmp_path)
    named(second, [0, 1])
    assert f"{second} does not agree with the files before it about the names of the classes" in refusal(tmp_path)
    shard(second, 20, more=["x"] * 20)
    assert sum(sizes(load_dataset(str(tmp_path), None))) == 40
    shard(tmp_path / "train.parquet", 0)
    assert f"has both {first.name} and train.parquet for the split train; keep one" in refusal(tmp_path)


def test_of_several_configurations_one_is_to_be_chosen(tmp_path: Path) -> None:
    for name in ("german", "english"):
        shard(tmp_path / name / "train-00000-of-00001.parquet", 0)
    assert f"holds 2 datasets, english, german: give one, such as {tmp_path / 'english'}" in refusal(tmp_path)
    assert sum(sizes(load_dataset(str(tmp_path / "german"), None))) == 20


def test_one_shard_alone_is_read_with_a_note(tmp_path: Path) -> None:
    path = shard(tmp_path / "train-00000-of-00002.parquet", 0)
    note = f"{path} is one of 2 files: give {tmp_path} to read all of them"
    assert load_dataset(str(path), None).notes == (note,)
    assert load_dataset(str(shard(tmp_path / "train-00000-of-00001.parquet", 0)), None).notes == ()


def test_what_the_library_saved_to_disk_is_read(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(NAMES))})
    columns = {"text": [text for text, _ in rows(0)], "label": [n % 2 for n in range(20)]}
    saved = datasets.Dataset.from_dict(columns, features=features)
    saved.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(str(tmp_path / "two"))
    assert load_dataset(str(tmp_path / "one"), None).labels == ("spam", "ham")
    assert len(load_dataset(str(tmp_path / "two"), None).test) == 20
    for path in tmp_path.rglob("*.arrow"):
        path.write_bytes(path.read_bytes()[:100])
    assert "cannot be read as a dataset saved to disk" in refusal(tmp_path / "two")


# ---- names of classes


def test_class_names_come_from_the_file(tmp_path: Path) -> None:
    """In the order that they have there, as from the hub; a split without labels is left out as it is there."""
    assert load_dataset(str(named(tmp_path / "one.parquet", [0, 1] * 20)), None).labels == ("spam", "ham")
    named(tmp_path / "own" / "train.parquet", [0, 1] * 20)
    named(tmp_path / "own" / "test.parquet", [-1] * 9)
    named(tmp_path / "own" / "validation.parquet", [None] * 9)
    data = load_dataset(str(tmp_path / "own"), None)
    assert data.labels == ("spam", "ham")
    assert data.notes == tuple(
        f"{tmp_path / 'own'}: the split {name} is not read, it has no labels" for name in ("test", "validation")
    )


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([0, 1, 2, 3], "row 4 has the label 3 of 0 to 2"),
        ([0, 1, -2], "row 3 has the label -2 of 0 to 2"),
        ([0, 1, -1], "row 3 has the label -1 of 0 to 2; -1 stands for no label: take the row out"),
        ([0, 1, None], "row 3: the column 'label' is empty"),
    ],
)
def test_a_number_without_a_name_is_refused(tmp_path: Path, numbers: list[int | None], message: str) -> None:
    assert message in refusal(named(tmp_path / "own.parquet", numbers))


@pytest.mark.parametrize(
    "about", [b"{[", b"\xff", b"7", b'{"info": []}', b'{"info": {"features": {"label": {}}}}', b"[" * 99_999]
)
def test_what_else_stands_there_is_no_name(tmp_path: Path, about: bytes) -> None:
    table = pa.table({"text": [f"{n}" for n in range(20)], "label": [n % 2 for n in range(20)]})
    pq.write_table(table.replace_schema_metadata({b"huggingface": about}), tmp_path / "own.parquet")
    assert load_dataset(str(tmp_path / "own.parquet"), None).labels == ("0", "1")


def test_an_empty_name_and_several_labels_an_item_are_refused(tmp_path: Path) -> None:
    assert "row 1: the column 'label' is empty" in refusal(named(tmp_path / "own.parquet", [0, 1], ("", "b")))
    pq.write_table(pa.table({"text": ["a", "b"], "label": [[0, 1], [1]]}), tmp_path / "list.parquet")
    assert "row 1: the column 'label' holds a list; an item has one label" in refusal(tmp_path / "list.parquet")


# ---- images in tables


def image_table(path: Path, images: list[Any], column: str = "image") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    features = datasets.Features({column: datasets.Image(), "label": datasets.ClassLabel(names=["level", "upright"])})
    labels = [n % 2 for n in range(len(images))]
    datasets.Dataset.from_dict({column: images, "label": labels}, features=features).to_parquet(path)
    return path


def test_images_in_shards_are_read_as_from_the_hub(tmp_path: Path) -> None:
    images = [{"bytes": jpeg(image), "path": None} for image in tiny_images(0, 40)]
    for number in (0, 1):
        image_table(tmp_path / "data" / f"train-0000{number}-of-00002.parquet", images[20 * number :][:20])
    data = load_dataset(str(tmp_path), None)
    assert data.task == "image-classification"
    assert data.labels == ("level", "upright")
    assert sum(sizes(data)) == 40
    assert isinstance(data.train.inputs, ImageFiles)
    assert (pickle.loads(pickle.dumps(data.train.inputs))[0] == data.train.inputs[0]).all()
    own = image_table(tmp_path / "own.parquet", images[:20], "img")
    assert load_dataset(str(own), None, text_column="img").task == "image-classification"
    pq.write_table(pa.table({"image": [image["bytes"] for image in images], "label": ["a", "b"] * 20}), own)
    assert load_dataset(str(own), None).labels == ("a", "b")


def test_images_in_tables_that_cannot_be_read_are_named_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images: list[Any] = [{"bytes": jpeg(image), "path": None} for image in tiny_images(0, 20)]
    images[3] = {"bytes": images[3]["bytes"][:200], "path": None}
    images[5] = {"bytes": b"text", "path": None}
    path = image_table(tmp_path / "own.parquet", images)
    said = refusal(path)
    assert said.startswith(f"{path}: row 4: the image cannot be read")
    assert f"; 1 more cannot be: {path}: row 6; mend them, or take them out" in said
    images[3] = None
    assert f"{image_table(path, images)}: row 4: there is no image" in refusal(path)
    monkeypatch.setattr(parquet_files, "MOST_IMAGE_BYTES", 1_000)
    assert "of images, which are held in memory: save them as files" in refusal(path)


def test_what_a_table_names_is_a_file_or_refused(tmp_path: Path) -> None:
    """A pipe is not waited for; the column `image` of a parquet file can hold names as well."""
    write_tiny_images(tmp_path, splits=False)
    files = [f"{label}/{n:02}.png" for n in range(20) for label in ("high", "low")]
    for values in (files, [{"bytes": None, "path": file} for file in files]):
        pq.write_table(pa.table({"image": values, "label": ["a", "b"] * 20}), tmp_path / "own.parquet")
        assert sum(sizes(load_dataset(str(tmp_path / "own.parquet"), None))) == 40
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty.png").write_bytes(b"")
    messages = {"pipe.png": "it is a pipe", "/dev/zero": "it is a pipe, a socket or a device", "empty.png": "is empty"}
    for name, message in messages.items():
        write_csv(tmp_path / "own.csv", [*zip(files, files, strict=True), (name, "a")], ("file_name", "label"))
        said = refusal(tmp_path / "own.csv")
        assert f"{tmp_path / 'own.csv'}: line 42: " in said
        assert message in said


@pytest.mark.parametrize("table", ["metadata.jsonl", "labels.csv", "metadata.parquet"])
def test_a_table_beside_images_tells_their_labels(tmp_path: Path, table: str) -> None:
    write_tiny_images(tmp_path / "images", splits=False)
    files = [f"images/{path.parent.name}/{path.name}" for path in sorted((tmp_path / "images").rglob("*.png"))]
    labels = ["even" if int(file[-6:-4]) % 2 == 0 else "odd" for file in files]
    columns = {"file_name": files, "label": labels}
    if table.endswith("csv"):
        write_csv(tmp_path / table, zip(files, labels, strict=True), ("file_name", "label"))
    elif table.endswith("parquet"):
        pq.write_table(pa.table(columns), tmp_path / table)
    else:
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in zip(files, labels, strict=True)]
        (tmp_path / table).write_text("\n".join(lines), encoding="utf-8")
    for place in (tmp_path, tmp_path / table):
        data = load_dataset(str(place), None)
        assert data.task == "image-classification"
        assert data.labels == ("even", "odd")
        assert sum(sizes(data)) == 114
    (tmp_path / files[7]).unlink()
    said = refusal(tmp_path)
    assert str(tmp_path / files[7]) in said
    assert table in said


def test_a_table_in_the_folder_of_each_split_is_followed(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_tiny_images(tmp_path / split, splits=False)
        named_files = sorted((tmp_path / split).rglob("*.png"))
        rows = [(str(path.relative_to(tmp_path / split)), path.parent.name) for path in named_files]
        write_csv(tmp_path / split / "metadata.csv", rows, ("file_name", "label"))
    data = load_dataset(str(tmp_path), None)
    assert data.labels == ("high", "low", "upright")
    assert len(data.test) == 114


def test_a_table_that_names_no_files_says_what_it_wants(tmp_path: Path) -> None:
    write_tiny_images(tmp_path / "images", splits=False)
    write_csv(tmp_path / "labels.csv", [("a.png", "x")], ("filename", "label"))
    said = refusal(tmp_path)
    assert f"{tmp_path / 'labels.csv'} has no column 'text'" in said
    assert "if 'filename' names image files, call it 'file_name'" in said
    write_tiny_images(tmp_path, splits=False)
    (tmp_path / "labels.csv").rename(tmp_path / "high" / "labels.csv")
    write_csv(tmp_path / "one.csv", [])
    data = load_dataset(str(write_tiny_images(tmp_path / "classes", splits=False)), None)
    assert data.labels == ("high", "low", "upright")
    write_csv(tmp_path / "classes" / "prices.csv", [(1, 2)], ("a", "b"))
    data = load_dataset(str(tmp_path / "classes"), None)
    assert data.notes == (f"{tmp_path / 'classes' / 'prices.csv'} is not read: its images are divided by folder",)
