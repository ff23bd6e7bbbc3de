"""Examples of one's own for the demo, the load test and the savings; and a warning where labels do not match."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.processes import ROOT, Service, spawn_edge, stopping
from support.tiny import write_csv, write_tiny_images

from loadtests import savings
from loadtests.common import own_data
from loadtests.users import choice
from loadtests.users.curve import draw
from service.cli import main
from service.commands.up import _example

ROWS = [("what is my balance", "balance"), ("set a timer", "timer"), ("will it rain", "weather")]
PLAIN = {"sentences": "written", "images": "drawn", "mix": "", "key": None, "request_timeout_ms": 0}


def options(data: Path | None = None, **more: object) -> Namespace:
    return Namespace(data=data and str(data), **({"text_column": "text", "label_column": "label"} | PLAIN | more))


def test_texts_are_read_from_each_kind_of_table(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "a.csv", ROWS)
    lines = tmp_path / "a.jsonl"
    lines.write_text("\ufeff" + "\n".join(json.dumps({"text": text, "label": label}) for text, label in ROWS) + "\n\n")
    columns = pa.table({"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]})
    pq.write_table(columns, tmp_path / "a.parquet")
    for path in (table, lines, tmp_path / "a.parquet"):
        assert own_data.read(path, "text", "label") == ROWS
    split = write_csv(tmp_path / "b.csv", [(*ROWS[0], "train"), (*ROWS[1], "test")], header=("text", "label", "split"))
    assert own_data.read(split, "text", "label") == [ROWS[1]]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", b"", "has no examples"),
        ("a.csv", b"text,label\n", "has no examples"),
        ("a.csv", b"query,label\na,b\n", "has no column 'text', but query, label: name it with --text-column"),
        ("a.csv", b"text,label\na,\n", "row 1: 'text' or 'label' is empty"),
        ("a.csv", b'text,label\n"a,b\n', "cannot be read"),
        ("a.csv", "text,label\nschön,b\n".encode("latin-1"), "cannot be read"),
        ("a.jsonl", b'{"text": "a", "label": "b"}\n{"text"', "line 2 is no JSON object"),
        ("a.jsonl", b"[1]\n", "line 1 is no JSON object"),
        ("a.parquet", b"PAR1 half", "cannot be read"),
        ("a.txt", b"a", "is no table"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(choice.WrongUse) as refused:
        choice.choose(choice.TEXTS, options(path))
    assert str(path) in str(refused.value)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_images_are_read_by_class_and_not_sent_to_an_edge_of_texts(tmp_path: Path) -> None:
    folder = write_tiny_images(tmp_path / "images")
    chosen, _ = choice.choose(choice.IMAGES, options(folder))
    assert len(chosen.stock.items["easy"]) == 24, "those of test/ alone"
    assert set(chosen.stock.labels["easy"] or ()) == {"high", "low", "upright"}
    with pytest.raises(choice.WrongUse, match="takes texts"):
        choice.choose(choice.TEXTS, options(folder))


def test_foreign_labels_are_told_and_nothing_is_said_of_their_accuracy(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", ROWS)
    chosen, warning = choice.choose(choice.TEXTS, options(path), ["balance", "timer", "weather"])
    assert warning is None
    chosen, warning = choice.choose(choice.TEXTS, options(path), ["balance", "timer"])
    assert warning is not None
    assert "counted as wrong" in warning
    assert chosen.stock.labels["easy"] is not None
    chosen, warning = choice.choose(choice.TEXTS, options(), ["refund", "parcel"])
    assert warning is not None
    assert "joint accuracy is not measured" in warning
    assert set(chosen.stock.labels.values()) == {None}


@pytest.fixture(scope="module")
def foreign_edge(tmp_path_factory: pytest.TempPathFactory) -> "object":
    """An edge of the packaged weights under other labels."""
    folder = tmp_path_factory.mktemp("foreign")
    bundle = folder / "bundle"
    bundle.mkdir()
    for file in (ROOT / "models" / "bundles" / "clinc150-small").iterdir():
        (bundle / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((bundle / "gatekeeper.json").read_text())
    manifest["labels"] = [f"own-{number}" for number in range(len(manifest["labels"]))]
    (bundle / "gatekeeper.json").write_text(json.dumps(manifest))
    edge = spawn_edge(folder, "http://127.0.0.1:9", BUNDLE=str(bundle))
    with stopping(edge):
        edge.wait_ready()
        yield edge, bundle


@pytest.mark.slow
def test_the_demo_asks_for_sentences_of_an_own_bundle_and_takes_them(
    foreign_edge: tuple[Service, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edge, _ = foreign_edge
    assert main(["demo", "--url", edge.url]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has other labels than the demo's sentences" in line
    assert "give --data FILE" in line
    own = write_csv(tmp_path / "own.csv", [(text, f"own-{number}") for number, (text, _) in enumerate(ROWS)])
    assert main(["demo", "--url", edge.url, "--data", str(own)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "right label" in shown.out
    assert "threshold  deferral ratio  right" in shown.out
    foreign = write_csv(tmp_path / "foreign.csv", ROWS)
    assert main(["demo", "--url", edge.url, "--data", str(foreign)]) == 0
    shown = capsys.readouterr()
    assert "warning: 3 of the 3 labels of --data are unknown" in shown.err
    assert "threshold  deferral ratio\n" in shown.out


@pytest.mark.slow
def test_a_load_test_of_foreign_labels_warns_and_measures_no_accuracy(
    foreign_edge: tuple[Service, Path], tmp_path: Path
) -> None:
    """Also with a slash at the end of the host, which Locust would double."""
    edge, _ = foreign_edge
    command = ["locust", "-f", "loadtests/locustfile.py", "--host", f"{edge.url}/", "--headless", "-u", "1", "-t", "1s"]
    done = subprocess.run(
        [sys.executable, "-m", *command, "--only-summary"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert "labels of sentences of this project are unknown to the edge" in done.stderr
    assert "joint accuracy unknown (0 labelled items" in done.stdout
    assert "deferral ratio unknown" not in done.stdout
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_the_pair_prints_is_for_its_bundle(foreign_edge: tuple[Service, Path], bundles: Path) -> None:
    assert "a text of yours" in _example(foreign_edge[1], guarded=False)
    assert "book me a table" in _example(bundles / "clinc150-small", guarded=False)


def test_savings_of_an_own_bundle_want_its_own_sentences(
    foreign_edge: tuple[Service, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(foreign_edge[1])
    assert savings.main(["--bundle", bundle, "--large-bundle", bundle]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "are unknown to" in line
    assert "give sentences of its own with --data" in line


def test_the_curve_of_a_sweep_is_a_picture(tmp_path: Path) -> None:
    phases = tmp_path / "phases.csv"
    head = "threshold,deferral_ratio,joint_accuracy,small_accuracy\n"
    phases.write_text(head + "0.5,0.1,0.94,0.93\n0.9,0.3,0.96,0.93\n0.99,,,\n")
    assert draw(phases, tmp_path / "curve.png") == f"the curve: {tmp_path / 'curve.png'}"
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    phases.write_text(head + "0.5,0.1,,\n0.9,0.3,,\n")
    assert draw(phases, tmp_path / "unlabelled.png").startswith("the curve: ")
    phases.write_text(head)
    assert "it needs two thresholds" in draw(phases, tmp_path / "none.png")
    assert "cannot be read" in draw(tmp_path / "missing.csv", tmp_path / "none.png")
