"""What the offline commands are given by others: files, tables, bundles, servers. One clear line each.

One file because its tables list one kind of input beside the other.
"""

import hashlib
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.processes import free_port, spawn_edge, stopping
from support.tiny import write_csv

from models.bundle import CALIBRATION, MANIFEST, load_bundle
from models.data.datasets import load_dataset
from models.errors import BundleError, InputError
from models.evaluation import edge_client
from models.inference.classifier import load_classifier
from models.printing import printable
from service.cli import main

pytestmark = pytest.mark.timeout(120)

Said = pytest.CaptureFixture[str]


def line_of(said: Said, *arguments: str | Path) -> str:
    """What a command that must fail says: one line, nothing that a terminal obeys."""
    assert main([str(argument) for argument in arguments]) == 2
    (line,) = said.readouterr().err.splitlines()
    assert line.startswith("gatekeeper: ")
    assert line.isprintable()
    return line


# ---- on a terminal


def test_what_a_terminal_obeys_is_shown_as_what_it_is() -> None:
    assert printable("Überweisung 🐟 ok") == "Überweisung 🐟 ok"
    assert printable("\x1b[2J\r\n\0\x9b\u202e\udc80") == r"\x1b[2J\r\n\x00\x9b\u202e\udc80"
    assert printable("x" * 3_000) == "x" * 2_000 + " ... (1000 more characters)"


def test_names_from_a_file_reach_the_terminal_escaped(tmp_path: Path, capsys: Said) -> None:
    table = tmp_path / "t.csv"
    table.write_text("\x1b[31mred,small_correct\n0.5,1\n")
    assert r"there is: \x1b[31mred" in line_of(capsys, "evaluate", "--predictions", table)
    rows = [(f"text {number}", f"\x1b]0;title\a{number % 2}") for number in range(40)]
    data = write_csv(tmp_path / "\x1b[2J.csv", rows)
    bundle = Path(load_bundle.__code__.co_filename).parent / "bundles" / "clinc150-small"
    assert r"\x1b" in line_of(capsys, "evaluate", bundle, "--data", data)


# ---- --predictions


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        *(["1e100"], ["1e100"] * 300, ["1e100", "-1e100"] * 30, ["5e-324"], ["5e-324", "0"] * 30, ["0"] * 300),
        *(["0.5"], [str(2**63 - 1 - row) for row in range(60)], [f"{row}e-320" for row in range(60)]),
    ],
    ids=lambda values: f"{len(values)} of {values[0][:8]}",
)
def test_confidences_at_the_ends_of_what_a_number_holds_are_measured(
    tmp_path: Path, capsys: Said, values: list[str]
) -> None:
    """With a report; a warning is an error here."""
    table = write_csv(
        tmp_path / "t.csv",
        [(value, row % 3 > 0, row % 5 > 0) for row, value in enumerate(values)],
        ("confidence", "small_correct", "large_correct"),
    )
    assert main(["evaluate", "--predictions", str(table), "--output", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_bytes())["rows"] == len(values)


@pytest.mark.parametrize("value", ["1e308", "-1e308", "1e101", "1" + "0" * 300, "inf", "nan", "1" + "0" * 400])
def test_a_confidence_beyond_that_is_refused_by_row(tmp_path: Path, capsys: Said, value: str) -> None:
    table = write_csv(tmp_path / "t.csv", [("0.5", 1), (value, 0)], ("confidence", "small_correct"))
    line = line_of(capsys, "evaluate", "--predictions", table)
    assert "confidence is" in line
    assert "row 2" in line


@pytest.mark.parametrize("threshold", ["1e308", "-1e308", "nan", "inf"])
def test_a_threshold_beyond_that_is_refused(tmp_path: Path, capsys: Said, threshold: str) -> None:
    table = write_csv(tmp_path / "t.csv", [("0.5", 1)], ("confidence", "small_correct"))
    line = line_of(capsys, "evaluate", "--predictions", table, f"--threshold={threshold}")
    assert "--threshold must be a number between" in line


@pytest.mark.parametrize("classes", [b"[" * 100_000, b"{", b"7", b"[[]]", b"\xff", b'{"a": 1}'])
def test_class_names_that_are_none_are_not_ours(tmp_path: Path, classes: bytes) -> None:
    table = pa.table({"confidence": [0.5, 0.6], "small_correct": [1, 0], "label": ["b", "a"]})
    path = tmp_path / "t.parquet"
    pq.write_table(table.replace_schema_metadata({b"gatekeeper.classes": classes}), path)
    assert main(["evaluate", "--predictions", str(path)]) == 0


# ---- tables that unpack to more than there is memory


def repeated(path: Path, rows: int, **values: Any) -> Path:
    """A parquet file of one row, so many times."""
    schema = pa.schema([(name, pa.scalar(value).type) for name, value in values.items()])
    part = pa.table({name: pa.repeat(pa.scalar(value), 2_000_000) for name, value in values.items()}, schema=schema)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for _ in range(rows // len(part)):
            writer.write_table(part, row_group_size=len(part))
    assert path.stat().st_size < 2**20
    return path


def long_texts(path: Path, **columns: Any) -> Path:
    """100,000 times the same text of a megabyte: 93 GiB in a megabyte or less."""
    codes = pa.array(np.zeros(100_000, dtype=np.int32))
    table = pa.table({"text": pa.DictionaryArray.from_arrays(codes, pa.array(["x" * 1_000_000])), **columns})
    pq.write_table(table, path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 2**21
    return path


@pytest.mark.slow
def test_a_table_of_too_many_rows_is_refused_before_it_is_read(tmp_path: Path, capsys: Said, bundles: Path) -> None:
    table = repeated(tmp_path / "p.parquet", 100_000_000, confidence=0.5, small_correct=1.0)
    says = "has 100,000,000 rows or values in a column; the most is 10,000,000"
    assert says in line_of(capsys, "evaluate", "--predictions", table)
    data = repeated(tmp_path / "d.parquet", 100_000_000, text="hello", label="greeting")
    assert says in line_of(capsys, "evaluate", bundles / "clinc150-small", "--data", data)
    whole = pa.array([[0.5] * 11_000_000], pa.list_(pa.float64()))  # one row, and as long
    pq.write_table(pa.table({"confidence": whole, "small_correct": [1.0]}), tmp_path / "list.parquet")
    assert "has 11,000,000 rows or values" in line_of(capsys, "evaluate", "--predictions", tmp_path / "list.parquet")


def test_calibration_data_of_too_many_rows_keep_the_edge_from_starting(
    tmp_path: Path, capsys: Said, bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"confidence": 0.5, "small_correct": 1.0, "large_correct": 1.0}
    content = repeated(tmp_path / "bomb.parquet", 20_000_000, **values).read_bytes()
    bundle = changed(tmp_path / "bundle", bundles / "clinc150-small", CALIBRATION, content)
    with pytest.raises(BundleError, match="20,000,000 rows"):
        load_bundle(bundle).read_calibration()


def test_a_column_of_too_much_text_is_refused(tmp_path: Path, capsys: Said, bundles: Path) -> None:
    says = "the column 'text' holds 93 GiB of text unpacked; the most is 2 GiB"
    halves = pa.array(["a", "b"] * 50_000)
    assert says in line_of(
        capsys,
        "evaluate",
        bundles / "clinc150-small",
        *("--data", long_texts(tmp_path / "d.parquet", label=halves)),
    )
    columns = {"confidence": np.linspace(0, 1, 100_000), "small_correct": np.ones(100_000)}
    table = long_texts(tmp_path / "p.parquet", **columns)
    assert says in line_of(capsys, "evaluate", "--predictions", table)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "huge"])
def test_what_is_no_file_to_read_is_told_and_never_waited_for(
    tmp_path: Path, capsys: Said, bundles: Path, suffix: str, kind: str
) -> None:
    path = tmp_path / f"data{suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as stream:
            stream.truncate(2**40)  # no block of it is there
    assert str(path) in line_of(capsys, "evaluate", bundles / "clinc150-small", "--data", path)
    if suffix != ".jsonl":
        assert str(path) in line_of(capsys, "evaluate", "--predictions", path)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b'{"train": 7}', b"\xff", b"{", b"\0"])
def test_a_dataset_of_other_json_is_refused(tmp_path: Path, content: bytes) -> None:
    for name, file in (("clinc150", "data_full.json"), ("banking77", "categories.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_bytes(content)
    for name in ("train", "test"):
        write_csv(tmp_path / "banking77" / f"{name}.csv", [("hello", "greeting")], ("text", "category"))
    for name in ("clinc150", "banking77"):
        with pytest.raises(InputError, match=r"\.json"):
            load_dataset(name, tmp_path)


# ---- bundles


def changed(directory: Path, bundle: Path, file: str, content: bytes) -> Path:
    """A copy with another file, which its manifest knows."""
    shutil.copytree(bundle, directory)
    manifest = json.loads((bundle / MANIFEST).read_bytes())
    manifest["files"][file] = hashlib.sha256(content).hexdigest()
    (directory / MANIFEST).write_text(json.dumps(manifest))
    (directory / file).write_bytes(content)
    return directory


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b"[]", b"null", b"{}", b"\xff\xfe", b'{"name": "a", "name": "b"}', b'{"\\u001b[31m": 1}', b""],
)
@pytest.mark.parametrize("command", [["evaluate", "--data", "none.csv"], ["calibrate"]])
def test_a_manifest_that_is_none_is_one_line(tmp_path: Path, capsys: Said, command: list[str], content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    assert MANIFEST in line_of(capsys, *command, tmp_path)


def test_a_huge_manifest_is_not_read(tmp_path: Path, capsys: Said) -> None:
    with (tmp_path / MANIFEST).open("wb") as stream:
        stream.truncate(10 * 2**30)
    assert "it is larger than 16 MiB" in line_of(capsys, "calibrate", tmp_path)


@pytest.mark.slow
def test_an_edge_does_not_start_with_such_a_bundle(tmp_path: Path, bundles: Path) -> None:
    small = bundles / "clinc150-small"
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / MANIFEST).write_bytes(b"[" * 100_000)
    ids = edited(small / "tokenizer.json", lambda document: document["model"]["vocab"].update(zebra=4_000))
    changed(tmp_path / "ids", small, "tokenizer.json", ids)
    for name, says in (("deep", "lie too deep in each other"), ("ids", "the token id 4000 is none of")):
        edge = spawn_edge(tmp_path, "http://127.0.0.1:9", BUNDLE=str(tmp_path / name))
        with stopping(edge):
            assert edge.process.wait(60) == 2
        line = edge.log.read_text().splitlines()[-1]
        assert line.startswith("gatekeeper: ")
        assert says in line
        assert "Traceback" not in edge.log.read_text()


def edited(path: Path, change: Callable[[Any], object]) -> bytes:
    document = json.loads(path.read_bytes())
    change(document)
    return json.dumps(document).encode()


def around(tokens: int) -> dict[str, Any]:
    """A post-processor that puts a token of this id before every text."""
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}, text],
        "pair": [text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"[X]": {"id": "[X]", "ids": [tokens], "tokens": ["[X]"]}},
    }


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("tokenizer.json", lambda document: document["model"]["vocab"].update(zebra=4_000)),
        ("tokenizer.json", lambda document: document["model"]["vocab"].update(zebra=10**9)),
        ("tokenizer.json", lambda document: document.update(post_processor=around(999_999))),
        ("config.json", lambda document: document.update(unk_token_id=4_000)),
    ],
)
def test_token_ids_that_the_model_lacks_are_told_at_load_time(
    tmp_path: Path, capsys: Said, bundles: Path, file: str, change: Callable[[Any], object]
) -> None:
    small = bundles / "clinc150-small"
    bundle = changed(tmp_path / "bundle", small, file, edited(small / file, change))
    with pytest.raises(BundleError, match=r"the token id \d+ is none of the model's 4000"):
        load_classifier(load_bundle(bundle))


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b"{}", b"\xff", b""])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("clinc150-small", "config.json"),
        ("clinc150-small", "tokenizer.json"),
        ("clinc150-small", "model.safetensors"),
        ("fashion-mnist-small", "preprocessor_config.json"),
    ],
)
def test_a_damaged_part_of_a_model_is_a_bundle_error(
    tmp_path: Path, bundles: Path, name: str, file: str, content: bytes
) -> None:
    bundle = load_bundle(changed(tmp_path / "bundle", bundles / name, file, content))
    with pytest.raises(BundleError, match=f"^{bundle.directory}"):
        load_classifier(bundle)


@pytest.mark.parametrize(
    ("name", "file", "change"),
    [
        ("fashion-mnist-small", "preprocessor_config.json", {"size": {"height": 10**9, "width": 10**9}}),
        ("fashion-mnist-small", "preprocessor_config.json", {"size": {"height": 17, "width": 7}}),
        ("fashion-mnist-small", "preprocessor_config.json", {"image_mean": ["a"]}),
        ("clinc150-small", "tokenizer.json", {"model": {"unk_token": "nowhere"}}),
    ],
)
def test_parts_that_do_not_fit_together_are_told_at_load_time(
    tmp_path: Path, bundles: Path, name: str, file: str, change: dict[str, Any]
) -> None:
    """Each file is one that can be read; an item would be the first to meet it."""

    def update(document: Any) -> None:
        for key, value in change.items():
            document[key] = document[key] | value if isinstance(value, dict) else value

    content = edited(bundles / name / file, update)
    with pytest.raises(BundleError, match="the model cannot be loaded"):
        load_classifier(load_bundle(changed(tmp_path / "bundle", bundles / name, file, content)))


def test_another_bundles_damaged_manifest_does_not_cost_the_new_one(tmp_path: Path, bundles: Path) -> None:
    from models.bundle import copy_bundle

    output = tmp_path / "bundle"
    output.mkdir()
    (output / MANIFEST).write_text("[" * 100_000)
    (output / "notes.txt").write_text("mine")
    copy_bundle(load_bundle(bundles / "clinc150-small"), output)
    assert load_bundle(output).manifest.name == "clinc150-small"
    assert (output / "notes.txt").read_text() == "mine"


# ---- --endpoint, and the demo


@contextmanager
def answering(*parts: bytes, pause_s: float = 0.0, endless: bool = False) -> Iterator[str]:
    """The URL of a server that gives the same bytes to everybody, part by part; endless: the last for ever."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)

        def answer(connection: socket.socket) -> None:
            with connection:
                connection.recv(65_536)
                for part in parts:
                    connection.sendall(part)
                    stop.wait(pause_s)
                while endless and not stop.wait(pause_s):
                    connection.sendall(parts[-1])

        def serve() -> None:
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                    answer(connection)
                except OSError:  # nobody came, or somebody left
                    continue

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            thread.join()


def response(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


@pytest.fixture
def evaluate(tmp_path: Path, bundles: Path) -> list[str | Path]:
    """A comparison with an endpoint, but for its URL."""
    small = bundles / "clinc150-small"
    labels = load_bundle(small).manifest.labels
    data = write_csv(tmp_path / "data.csv", [(f"{label} {row}", label) for label in labels for row in range(5)])
    return ["evaluate", small, "--large", small, "--data", data, "--thresholds", "0.5", "--endpoint"]


def failed(said: Said, *arguments: str | Path) -> str:
    """The last line; numbers stand on stdout before it."""
    assert main([str(argument) for argument in arguments]) == 2
    printed = said.readouterr().err
    *notes, line = printed.splitlines()
    assert all(note.startswith("note: ") for note in notes)
    assert line.isprintable()
    return line


GOOD_MODELS = {"data": [{"id": "x", "gate_digest": "?", "task": "text-classification"}]}
ODD_ANSWERS = [
    (b"<!doctype html><h1>hello</h1>", "what no Gatekeeper edge does"),
    (b"{}", "data: Field required"),
    (b"[]", "what no Gatekeeper edge does"),
    (b"null", "what no Gatekeeper edge does"),
    (b'{"data": []}', "data: List should have at least 1 item"),
    (b'{"data": [7]}', "data.0"),
    (b'{"data": [{"id": 7}]}', "data.0.id"),
    (b"[" * 100_000, "what no Gatekeeper edge does"),
    (b"", "what no Gatekeeper edge does"),
    (b"\xff\0\x1b[2J", "what no Gatekeeper edge does"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("body", "says"), ODD_ANSWERS)
def test_what_is_no_edge_is_told(evaluate: list[str | Path], capsys: Said, body: bytes, says: str) -> None:
    with answering(response(body)) as url:
        assert says in failed(capsys, *evaluate, url)
        assert says in failed(capsys, "demo", "--url", url)


def test_another_models_edge_is_told(evaluate: list[str | Path], capsys: Said) -> None:
    served = {"data": [{"id": "\x1b[2Jx", "gate_digest": "0"}]}
    with answering(response(json.dumps(served).encode())) as url:
        assert r"serves \x1b[2Jx with another gate digest" in failed(capsys, *evaluate, url)


def test_a_refusal_is_shown_without_what_a_terminal_obeys(evaluate: list[str | Path], capsys: Said) -> None:
    with answering(response(b"\x1b[2J\r\n\x1b]0;mine\a" + b"x" * 10_000, "503 Busy")) as url:
        for arguments in ([*evaluate, url], ["demo", "--url", url]):
            line = failed(capsys, *arguments)
            assert r"answered 503: \x1b[2J\r\n\x1b]0;mine" in line
            assert len(line) < 500


def test_a_redirect_is_told_and_not_followed(evaluate: list[str | Path], capsys: Said) -> None:
    with answering(response(b"", "302 Found", "location: http://127.0.0.1:1/")) as url:
        assert "answered 302: go to http://127.0.0.1:1/" in failed(capsys, *evaluate, url)


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"


def test_an_endless_answer_is_cut(evaluate: list[str | Path], capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_client, "MOST_ANSWER_BYTES", 2**20)
    with answering(HEAD, b" " * 65_536, endless=True) as url:
        assert "answered more than 1 MiB" in failed(capsys, *evaluate, url)
        assert "answered more than 1 MiB" in failed(capsys, "demo", "--url", url)


@pytest.mark.slow
@pytest.mark.parametrize("head", [HEAD, b"HTTP/1.1 200 OK\r\nx-slow: "])
def test_an_answer_that_drips_is_given_up(
    evaluate: list[str | Path], capsys: Said, monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    """Each byte comes in time, the last one never."""
    monkeypatch.setattr(edge_client, "CALL_S", 1.0)
    with answering(head, b"x", pause_s=0.05, endless=True) as url:
        assert "was not answered within 1 s" in failed(capsys, *evaluate, url)
        assert "was not answered within 1 s" in failed(capsys, "demo", "--url", url)


def test_what_is_packed_is_not_unpacked(evaluate: list[str | Path], capsys: Said) -> None:
    import gzip

    bomb = gzip.compress(b" " * 2**24)
    with answering(response(bomb, "200 OK", "content-encoding: gzip")) as url:
        assert "what no Gatekeeper edge does" in failed(capsys, *evaluate, url)


@pytest.mark.slow
@pytest.mark.parametrize("body", [b"HTTP/9 what\r\n\r\n", b"\0\0\0", b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{"])
def test_what_speaks_no_http_does_not_answer(evaluate: list[str | Path], capsys: Said, body: bytes) -> None:
    with answering(body) as url:
        assert "does not answer" in failed(capsys, *evaluate, url)


@pytest.mark.slow
@pytest.mark.parametrize("url", ["http://[::1", "localhost", "ftp://x", "", "http://", "\x1b[2J"])
def test_what_is_no_url_is_told(evaluate: list[str | Path], capsys: Said, url: str) -> None:
    assert "takes a URL, such as http://127.0.0.1:8000" in failed(capsys, *evaluate, url)
    assert "takes a URL, such as http://127.0.0.1:8000" in failed(capsys, "demo", "--url", url)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [("ALL_PROXY", "socks5://127.0.0.1:1080"), ("NO_PROXY", "fe80::/10"), ("HTTP_PROXY", "http://127.0.0.1:9")],
)
def test_no_proxy_of_the_environment_stands_between(
    evaluate: list[str | Path], capsys: Said, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with answering(response(b"{}")) as url:
        assert "data: Field required" in failed(capsys, *evaluate, url)
    nobody = f"http://127.0.0.1:{free_port()}"
    assert f"{nobody} does not answer" in failed(capsys, *evaluate, nobody)


def outputs(count: int, **changes: Any) -> bytes:
    output = {"label": "x", "confidence": 0.5, "decision": "accepted"} | changes
    return json.dumps({"model": "m", "threshold": 0.5, "outputs": [output] * count}).encode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (outputs(1), "answered 1 outputs to 50 inputs"),
        (b'{"outputs": {}}', "outputs: Input should be a valid array"),
        (b"{}", "outputs: Field required"),
        (outputs(50, confidence=float("nan")), "outputs.0.confidence: Input should be a finite number"),
        (outputs(50, confidence=float("inf")), "outputs.0.confidence: Input should be a finite number"),
        (outputs(50, confidence=None), "outputs.0.confidence"),
        (outputs(50, label=None), "outputs.0.label"),
        (outputs(50, decision=[]), "outputs.0.decision"),
    ],
)
def test_an_edge_that_answers_something_else_is_told(
    evaluate: list[str | Path], capsys: Said, bundles: Path, answer: bytes, says: str
) -> None:
    """The right model, and then another answer: whatever is asked gets the fields of both."""
    digest = load_bundle(bundles / "clinc150-small").gate_digest
    models = json.dumps({"data": [{"id": "m", "gate_digest": digest}]}).encode()
    with answering(response(b"{" + models[1:-1] + b", " + answer[1:]) if len(answer) > 2 else response(models)) as url:
        assert says in failed(capsys, *evaluate, url)


def test_a_table_in_another_encoding_and_an_output_that_is_a_file_are_told_first(tmp_path: Path, capsys: Said) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(b"confidence,small_correct,text\n0.1,1,caf\xe9\n0.2,0,x\n")
    assert "text is not UTF-8: save the file as UTF-8" in line_of(capsys, "evaluate", "--predictions", table)
    table.write_bytes(b"confidence,small_correct\n0.1,1\n0.2,0\n")
    assert "cannot be written" in line_of(capsys, "evaluate", "--predictions", table, "--output", table)
