"""Tables of texts are read whatever their kind; one that cannot be read is refused with its line."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.loading import ROWS, pairs, refusal, sizes
from support.tiny import tiny_rows, write_csv, write_tiny_csv

from models.data.datasets import load_dataset


def test_a_csv_a_jsonl_and_a_parquet_file_of_the_same_rows_are_the_same_data(tmp_path: Path) -> None:
    """The order of the columns, a byte order mark, blank lines and line ends do not matter."""
    own = write_tiny_csv(tmp_path / "own.csv")
    windows = tmp_path / "windows.csv"
    windows.write_bytes(b"\xef\xbb\xbf" + own.read_bytes().replace(b"text,label\r\n", b"text,label\r\n\r\n"))
    lines = tmp_path / "own.jsonl"
    lines.write_text("\n".join(json.dumps({"label": label, "text": text}) for text, label in tiny_rows()) + "\n\n")
    table = tmp_path / "own.parquet"
    texts, labels = zip(*tiny_rows(), strict=True)
    pq.write_table(pa.table({"label": pa.array(labels).dictionary_encode(), "text": texts}), table)
    loaded = [load_dataset(str(path), None) for path in (own, windows, lines, table)]
    assert len({data.content_hash for data in loaded}) == 1
    assert sorted(pairs(loaded[0])) == sorted(tiny_rows())
    assert loaded[0].name == "own.csv"
    assert loaded[0].task == "text-classification"
    assert sizes(loaded[0]) == [62, 7, 8, 19]


def test_the_columns_can_have_other_names(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "own.csv", [(1, label, text) for text, label in ROWS], ("id", "intent", "utterance"))
    data = load_dataset(str(path), None, text_column="utterance", label_column="intent")
    assert data.labels == ("ham", "spam")
    message = refusal(path, label_column="intent")
    assert message.startswith(f"{path} has no column 'text'; there is 'id', 'intent', 'utterance'; --text-column names")
    assert "cannot both be the column 'id'" in refusal(path, text_column="id", label_column="id")


def test_numbers_and_truth_values_are_labels_too(tmp_path: Path) -> None:
    """Labels that are whole numbers stand in their order, 2 before 10."""
    numbers = write_csv(tmp_path / "numbers.csv", [(f"{n} {label}", label) for n in range(8) for label in (10, 2)])
    assert load_dataset(str(numbers), None).labels == ("2", "10")
    lines = tmp_path / "own.jsonl"
    lines.write_text("\n".join(json.dumps({"text": f"t {n}", "label": n % 2 == 0}) for n in range(16)))
    assert load_dataset(str(lines), None).labels == ("False", "True")
    table = tmp_path / "own.parquet"
    pq.write_table(pa.table({"text": [f"t {n}" for n in range(16)], "label": [n % 2 for n in range(16)]}), table)
    assert load_dataset(str(table), None).labels == ("0", "1")


def test_long_texts_and_any_script_are_read(tmp_path: Path) -> None:
    odd = ["x" * 1_000_000, "naïve 東京 🙂\u2028next", 'a "quoted" word, and\ntwo lines', " spaces stay "]
    rows = [(text, "odd") for text in odd] + ROWS
    for path in (write_csv(tmp_path / "own.csv", rows), tmp_path / "own.jsonl"):
        if path.suffix == ".jsonl":
            lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows]
            path.write_text("\n".join(lines), encoding="utf-8")
        assert sorted(pairs(load_dataset(str(path), None))) == sorted(rows)


def test_white_space_around_a_label_makes_no_other_label(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "own.csv", [*ROWS, ("one more", " ham ")])
    assert load_dataset(str(path), None).labels == ("ham", "spam")


def test_a_split_column_divides_a_file(tmp_path: Path) -> None:
    kinds = ["train", "train", "Train", "dev", "calibrate", " test"]
    rows = [(f"{n} {label}", label, kinds[n % 6]) for n in range(12) for label in ("a", "b")]
    path = write_csv(tmp_path / "own.csv", rows, ("text", "label", "split"))
    data = load_dataset(str(path), None)
    assert sizes(data) == [12, 4, 4, 4]
    assert data.calibrate.inputs == ("4 a", "4 b", "10 a", "10 b")
    write_csv(path, [*rows, ("more", "a", "holdout")], ("text", "label", "split"))
    assert "line 26: the column 'split' is 'holdout'; it can be train, validation, val" in refusal(path)
    write_csv(path, [(text, label, "test") for text, label, _ in rows], ("text", "label", "split"))
    assert "there are no training rows, only test" in refusal(path)


def test_a_directory_has_one_file_a_split(tmp_path: Path) -> None:
    write_csv(tmp_path / "own" / "train.csv", ROWS)
    write_csv(tmp_path / "own" / "notes.csv", [])
    (tmp_path / "own" / "val.jsonl").write_text(
        "\n".join(json.dumps({"text": f"v{n}", "label": "ham"}) for n in range(3))
    )
    pq.write_table(pa.table({"text": ["a test"], "label": ["spam"]}), tmp_path / "own" / "test.parquet")
    data = load_dataset(str(tmp_path / "own"), None)
    assert sizes(data) == [40, 1, 2, 1]
    assert data.name == "own"
    assert data.train.inputs == tuple(text for text, _ in ROWS)
    write_csv(tmp_path / "own" / "dev.csv", ROWS)
    assert "both dev.csv and val.jsonl for the split validation" in refusal(tmp_path / "own")


def test_a_directory_without_training_data_says_what_it_wants(tmp_path: Path) -> None:
    write_csv(tmp_path / "one" / "test.csv", ROWS)
    assert "there are no training rows, only test" in refusal(tmp_path / "one")
    write_csv(tmp_path / "two" / "own.csv", ROWS)
    assert f"to read one file, give {tmp_path / 'two' / 'own.csv'} itself" in refusal(tmp_path / "two")
    write_csv(tmp_path / "three" / "train.csv", [(*row, "train") for row in ROWS], ("text", "label", "split"))
    assert sum(sizes(load_dataset(str(tmp_path / "three"), None))) == 40
    write_csv(tmp_path / "three" / "test.csv", [(*row, "train") for row in ROWS], ("text", "label", "split"))
    assert "its column 'split' says train, its name test" in refusal(tmp_path / "three")


HEADER = "text,label\n"
BAD_TABLES = {
    "empty.csv": (b"", "is empty"),
    "blank.csv": (b"\n \n", "is empty"),
    "header.csv": (HEADER.encode(), "has no rows"),
    "column.csv": (b"text,category\na,b\n", "has no column 'label'; there is 'text', 'category'"),
    "semicolon.csv": (b"text;label\na;b\n", "its columns are separated by ';', which must be commas"),
    "twice.csv": (b"text,label,text\na,b,c\n", "has two columns 'text'; rename one"),
    "cells.csv": (b"text,label\na,b\nhello, you,b\n", "line 3: 3 cells where the header has 2"),
    "few.csv": (b"text,label\na\n", "line 2: 1 cells where the header has 2"),
    "quote.csv": (b'text,label\n"two\nlines",b\n"never closed,b\nc,d\n', "line 4 is not valid csv: unexpected end"),
    "behind.csv": (b'text,label\n"a" b,c\n', "line 2 is not valid csv"),
    "notext.csv": (b'text,label\n"one\ntwo",b\n ,b\n', "line 4: the column 'text' is empty"),
    "nolabel.csv": (b"text,label\na,b\nc,\n", "line 3: the column 'label' is empty"),
    "latin.csv": ("text,label\na,b\ncafé,b\n".encode("latin-1"), "line 3 is not UTF-8"),
    "utf16.csv": ("text,label\na,b\n".encode("utf-16"), "line 1 is not UTF-8"),
    "empty.jsonl": (b"", "is empty"),
    "broken.jsonl": (
        b'{"text": "a", "label": "b"}\n\n{"text": "a", "label"\n',
        "line 3 is not valid JSON: Expecting ':' delimiter at column 22",
    ),
    "list.jsonl": (b'["a", "b"]\n', 'line 1 is not a JSON object; each line is one, such as {"text": "good morning"'),
    "deep.jsonl": (b"[" * 100_000, "line 1 is not valid JSON"),
    "twice.jsonl": (b'{"text": "a", "text": "b", "label": "c"}', "line 1 is not valid JSON: a key stands in it twice"),
    "column.jsonl": (b'{"texts": "a", "label": "b"}', "has no column 'text'; there is 'texts', 'label'"),
    "missing.jsonl": (b'{"text": "a", "label": "b"}\n{"text": "a"}', "line 2: the column 'label' is empty"),
    "null.ndjson": (b'{"text": "a", "label": "b"}\n{"text": null, "label": "b"}', "line 2: the column 'text' is empty"),
    "nan.jsonl": (b'{"text": "a", "label": NaN}', "line 1: the column 'label' is empty"),
    "nested.jsonl": (b'{"text": ["a"], "label": "b"}', "line 1: the column 'text' holds a list, not a text"),
    "half.jsonl": (b'{"text": "\\ud83d", "label": "b"}', "line 1: the column 'text' holds half a surrogate pair"),
    "split.jsonl": (
        b'{"text": "a", "label": "b"}\n{"text": "a", "label": "b", "split": "test"}',
        "line 2: either every",
    ),
    "nosplit.jsonl": (b'{"text": "a", "label": "b", "split": null}', "line 1: the column 'split' is None; it can be"),
    "latin.jsonl": ('{"text": "café", "label": "b"}'.encode("latin-1"), "line 1 is not UTF-8"),
    "empty.parquet": (b"", "is damaged, or not a parquet file"),
    "text.parquet": (b"text,label\na,b\n", "is damaged, or not a parquet file"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    content, message = BAD_TABLES[name]
    (tmp_path / name).write_bytes(content)
    said = refusal(tmp_path / name)
    assert said.startswith(str(tmp_path / name))
    assert message in said


def test_a_bad_parquet_file_is_refused_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "own.parquet"
    texts = ["a", "b", None]
    pq.write_table(pa.table({"text": texts, "label": ["x", "y", "x"]}), path)
    assert "row 3: the column 'text' is empty" in refusal(path)
    pq.write_table(pa.table({"text": ["a", "b"], "label": [1.0, float("nan")]}), path)
    assert "row 2: the column 'label' is empty" in refusal(path)
    pq.write_table(pa.table({"text": [b"\xff"], "label": ["x"]}), path)
    assert "row 1: the column 'text' holds a bytes, not a text" in refusal(path)
    latin = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xe9")])
    pq.write_table(pa.table({"text": latin, "label": ["x"]}), path)
    assert "'utf-8' codec can't decode" in refusal(path)
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, names=["text", "text", "label"]), path)
    assert "has two columns 'text'" in refusal(path)
    pq.write_table(pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}), path)
    assert "has no rows" in refusal(path)
    pq.write_table(pa.table({"words": ["a"], "label": ["x"]}), path)
    assert "has no column 'text'; there is 'words', 'label'" in refusal(path)
    pq.write_table(
        pa.table({"text": [text for text, _ in ROWS] * 50, "label": [label for _, label in ROWS] * 50}), path
    )
    content = path.read_bytes()
    for cut in (len(content) // 2, len(content) - 4):
        path.write_bytes(content[:cut])
        assert "is damaged, or not a parquet file" in refusal(path)


OF_ANOTHER_KIND = {
    "utf16.csv": (
        "text,label\na,b\n".encode("utf-16"),
        "is UTF-16: line 1 is not UTF-8; save the file as .csv in UTF-8",
    ),
    "bare.csv": ("text,label\na,b\n".encode("utf-16-le"), "line 1 holds a NUL byte"),
    "packed.csv": (b"\x1f\x8b\x08\0\0\0\0\0\0\0", "is packed by gzip"),
    "zip.csv": (b"PK\x03\x04\xff", "is a zip archive or a workbook"),
    "other.csv": (b"PAR1\xff", "is a parquet file"),
    "crash.csv": (b"text,label\na,b\n" + bytes(4_000), "line 3 holds a NUL byte"),
    "headless.csv": (b"good morning,greeting\nbye,farewell\n", "and the first line holds the names"),
    "wide.csv": (b",".join(b"c%d" % n for n in range(100_000)) + b"\n", "'c19' and 99980 more; --text-column names"),
    "list.jsonl": (json.dumps([{"text": "a", "label": "b"}], indent=1).encode(), "write one object a line"),
    "pretty.jsonl": (json.dumps({"text": "a", "label": "b"}, indent=1).encode(), "write one object a line"),
    "packed.csv.gz": (b"", "unpack it first"),
    "own.tsv": (b"text\tlabel\na\tb\n", "save it as .csv, with commas"),
    "own.xlsx": (b"PK\x03\x04", "save it as .csv, with commas"),
    "own.json": (b"[]", "write one object a line into a .jsonl"),
}


@pytest.mark.parametrize("name", OF_ANOTHER_KIND)
def test_a_file_of_another_kind_says_what_to_do(tmp_path: Path, name: str) -> None:
    content, message = OF_ANOTHER_KIND[name]
    (tmp_path / name).write_bytes(content)
    said = refusal(tmp_path / name)
    assert said.startswith(str(tmp_path / name))
    assert message in said
    assert len(said) < 600


def test_the_line_ends_of_an_old_mac_are_line_ends(tmp_path: Path) -> None:
    own = write_tiny_csv(tmp_path / "own.csv")
    before = load_dataset(str(own), None).content_hash
    own.write_bytes(own.read_bytes().replace(b"\r\n", b"\r"))
    lines = [json.dumps({"text": text, "label": label}) for text, label in tiny_rows()]
    for end in ("\r", "\r\n"):
        (tmp_path / "own.jsonl").write_bytes(end.join(lines).encode())
        assert load_dataset(str(tmp_path / "own.jsonl"), None).content_hash == before
    assert load_dataset(str(own), None).content_hash == before
