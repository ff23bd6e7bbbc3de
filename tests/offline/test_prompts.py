"""Prompts and answers from files of one's own: what is read, how it is divided, and what is refused in one line."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from models.data.hub_datasets import encoded
from models.data.prompts.examples import build_prompts, few
from models.data.prompts.files import hub_prompts
from models.data.prompts.load import is_prompts, load_prompts
from models.errors import InputError
from models.generation import Message

SPLITS = ("train", "select", "calibrate", "test")


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sums(count: int = 60) -> list[dict[str, Any]]:
    return [{"prompt": f"{number} plus {number}", "answer": 2 * number} for number in range(count)]


def load(path: Path) -> Any:
    assert is_prompts(str(path))
    return load_prompts(str(path), None)


def test_a_file_is_divided_and_read_the_same_each_time(tmp_path: Path) -> None:
    data = load(write(tmp_path / "sums.jsonl", sums()))
    assert (data.task, data.scorer) == ("text-generation", "exact")
    parts = [{example.id for example in getattr(data, split)} for split in SPLITS]
    assert sum(map(len, parts)) == 60
    assert len(set.union(*parts)) == 60
    assert load(tmp_path / "sums.jsonl").content_hash == data.content_hash
    assert data.train[0].answers == (str(2 * int(data.train[0].prompt.text.split()[0])),)
    smaller = few(data, 5)
    assert [len(getattr(smaller, split)) for split in SPLITS] == [5, 5, 5, 5]
    assert smaller.content_hash != data.content_hash


def test_equal_prompts_stay_in_one_split(tmp_path: Path) -> None:
    data = load(write(tmp_path / "sums.jsonl", [row for row in sums(30) for _ in range(3)]))
    assert not any("prompt" in note for note in data.notes)
    assert all(len(getattr(data, split)) % 3 == 0 for split in SPLITS)


def test_csv_and_parquet_say_the_same(tmp_path: Path) -> None:
    rows = sums()
    lines = ["prompt,answer", *(f'"{row["prompt"]}",{row["answer"]}' for row in rows)]
    (tmp_path / "sums.csv").write_text("\n".join(lines), encoding="utf-8")
    columns = {name: [str(row[name]) for row in rows] for name in ("prompt", "answer")}
    pq.write_table(pa.table(columns), tmp_path / "sums.parquet")
    hashes = {load(tmp_path / f"sums.{suffix}").content_hash for suffix in ("csv", "parquet")}
    assert hashes == {load(write(tmp_path / "sums.jsonl", rows)).content_hash}


def test_splits_by_column_by_file_and_their_notes(tmp_path: Path) -> None:
    rows = [{**row, "split": "test" if place < 9 else "train"} for place, row in enumerate(sums())]
    assert len(load(write(tmp_path / "sums.jsonl", rows)).test) == 9
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "train.jsonl", sums(40))
    write(folder / "test.jsonl", sums(4))
    data = load(folder)
    assert len(data.test) == 4
    assert any("in train and in test" in note for note in data.notes)
    assert any("4 different texts, and" in note for note in data.notes)


def test_choices_are_shown_and_an_answer_may_be_text_letter_or_number(tmp_path: Path) -> None:
    row = {"prompt": "Which is a colour?", "choices": ["red", "round"]}
    rows = [{**row, "prompt": f"{row['prompt']} {place}", "answer": ("red", "A", 0)[place % 3]} for place in range(30)]
    data = load(write(tmp_path / "closed.jsonl", rows))
    assert data.scorer == "choice"
    example = data.train[0]
    assert example.prompt.text.endswith("\nA. red\nB. round")
    assert (example.answers, example.choices) == (("A",), ("A", "B"))
    shown = [{**row, "prompt": f"red or round? {place}", "answer": "round"} for place in range(30)]
    example = load(write(tmp_path / "shown.jsonl", shown)).train[0]
    assert example.prompt.text.startswith("red or round? ")
    assert (example.answers, example.choices) == (("round",), ("red", "round"))


def test_columns_as_the_hub_has_them(tmp_path: Path) -> None:
    """ARC's: some of its labels are numbers from 1, which are no places from 0."""
    rows = [
        {
            "question": f"Which is a colour? {place}",
            "choices": {"text": ["round", "red", "loud"], "label": ["A", "B", "C"] if place % 2 else ["1", "2", "3"]},
            "answerKey": "B" if place % 2 else "2",
        }
        for place in range(30)
    ]
    data = load(write(tmp_path / "arc.jsonl", rows))
    assert {row.answers for row in (*data.train, *data.test)} == {("B",)}
    assert data.train[0].prompt.text.endswith("\nA. round\nB. red\nC. loud")
    sums = [{"question": f"{n} and 1", "answer": n + 1} for n in range(30)]
    assert load(write(tmp_path / "sums.jsonl", sums)).train[0].answers[0].isdecimal()


def test_prompts_about_one_image_stay_in_one_split(tmp_path: Path) -> None:
    rows = []
    for number in range(30):
        Image.fromarray(np.full((8, 8, 3), number, dtype=np.uint8)).save(tmp_path / f"{number}.png")
        rows += [{"prompt": f"{what}?", "image": f"{number}.png", "answer": "x"} for what in ("colour", "shape")]
    data = load(write(tmp_path / "seen.jsonl", rows))
    parts = [{row.image_key for row in getattr(data, name)} for name in ("train", "select", "calibrate", "test")]
    assert sum(map(len, parts)) == 30
    assert not any("image" in note for note in data.notes)
    few = load(write(tmp_path / "few.jsonl", [row for row in rows if row["image"] < "2"]))
    assert any(re.search(r"\d+ images? in train and in test", note) for note in few.notes)


def test_a_conversation_and_several_answers(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1 and 1"}]
    rows = [
        {"messages": [*turns[:1], {**turns[1], "content": f"{n} and 1"}], "answer": ["two", "2"]} for n in range(30)
    ]
    example = load(write(tmp_path / "talk.jsonl", rows)).train[0]
    assert example.messages[0] == Message("system", "Add.")
    assert example.answers == ("two", "2")


def test_images_are_files_beside_the_table(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8, 3), 7, dtype=np.uint8)).save(tmp_path / "one.png")
    rows = [{"prompt": f"colour {place}?", "image": "one.png", "answer": "dark"} for place in range(30)]
    data = load(write(tmp_path / "seen.jsonl", rows))
    assert data.task == "image-text-to-text"
    assert data.train[0].prompt.image.shape == (8, 8, 3)
    assert data.train[0].image_key == data.test[0].image_key
    (tmp_path / "one.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"line 1.*one\.png"):
        load(tmp_path / "seen.jsonl")
    rows[3]["image"] = ""
    Image.fromarray(np.full((8, 8, 3), 7, dtype=np.uint8)).save(tmp_path / "one.png")
    with pytest.raises(InputError, match="some prompts have an image and some have none"):
        load(write(tmp_path / "some.jsonl", rows))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "", "answer": "x"}, "line 2: the column 'prompt' is empty"),
        ({"prompt": "a", "answer": ""}, "line 2: the column 'answer' is empty"),
        ({"prompt": "a", "answer": None}, "line 2: the column 'answer' is empty"),
        ({"prompt": "a", "answer": []}, "line 2: the column 'answer' is empty"),
        ({"prompt": ["a"], "answer": "x"}, "holds a list, not a text"),
        ({"prompt": "\ud800", "answer": "x"}, "half a surrogate pair"),
        ({"answer": "x"}, "line 2 has no 'prompt' and no 'messages'"),
        ({"messages": [], "answer": "x"}, "messages is a list of"),
        ({"messages": [{"role": "robot", "content": "a"}], "answer": "x"}, "the role 'robot' is none of"),
        ({"messages": [{"role": "assistant", "content": "a"}], "answer": "x"}, "belongs into 'answer'"),
        ({"prompt": "a", "choices": ["x"], "answer": "x"}, "choices is a list of 2 to 26 texts"),
        ({"prompt": "a", "choices": ["x", "x"], "answer": "x"}, "two choices are the same"),
        ({"prompt": "a", "choices": ["x", "y"], "answer": "z"}, "the answer 'z' is none of the choices 'x', 'y'"),
        ({"prompt": "a", "choices": ["x", "y"], "answer": 2}, "the answer '2' is none of the choices"),
        ({"prompt": "a", "answer": "x", "split": "nowhere"}, "the split 'nowhere' is none of"),
        ({"prompt": "a", "answer": "x", "image": "none.png"}, r"line 2.*none\.png"),
    ],
)
def test_a_bad_row_is_one_line(row: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words) as refused:
        load(write(tmp_path / "rows.jsonl", [{"prompt": "a", "answer": "b"}, row]))
    assert len(str(refused.value).splitlines()) == 1


def test_what_holds_no_prompts_is_none(tmp_path: Path) -> None:
    assert not is_prompts(str(write(tmp_path / "labelled.jsonl", [{"text": "a", "label": "b"}])))
    assert not is_prompts(str(tmp_path / "missing.jsonl"))
    assert not is_prompts("clinc150")
    with pytest.raises(InputError, match="too few to divide"):
        load(write(tmp_path / "few.jsonl", sums(2)))
    with pytest.raises(InputError, match="Give --data-dir"):
        load_prompts("arc-easy", None)


def test_what_the_hubs_library_returns_is_read_by_the_same_columns() -> None:
    def part(first: int, count: int) -> datasets.Dataset:
        rows = [{"prompt": f"{number} plus 1", "answer": str(number + 1)} for number in range(first, first + count)]
        return datasets.Dataset.from_list(rows)

    found = datasets.DatasetDict(
        {"train": part(0, 30), "validation": part(30, 6), "test": part(40, 5), "extra": part(50, 2)}
    )
    data = build_prompts(hub_prompts("owner/sums", found, "MIT"))
    assert [len(getattr(data, split)) for split in SPLITS] == [30, 3, 3, 5]
    assert data.licence == "MIT"
    assert data.notes[0] == "owner/sums: the split extra is not read"


def test_images_of_the_hub_are_bytes_until_they_are_asked_for(tmp_path: Path) -> None:
    rows = []
    for number in range(30):
        file = tmp_path / f"{number}.png"
        Image.fromarray(np.full((8, 8, 3), number, dtype=np.uint8)).save(file)
        rows.append({"question": f"{number}?", "image": {"bytes": file.read_bytes(), "path": None}, "answer": "x"})
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    data = build_prompts(hub_prompts("owner/seen", {"train": encoded(table)}, "MIT"))
    assert {row.prompt.image.max() for row in (*data.train, *data.select, *data.calibrate, *data.test)} == set(
        range(30)
    )
    assert len({row.image_key for row in data.train}) == len(data.train)
    assert not isinstance(data.train[0].image, np.ndarray)


def test_a_name_that_is_nothing_is_one_line() -> None:
    with pytest.raises(InputError, match="'clinc150' holds no prompts and answers; there is arc-challenge"):
        load_prompts("clinc150", None)
