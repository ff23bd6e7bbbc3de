"""`gatekeeper label`: an LLM's labels for texts, what they cost, and that nothing is paid for twice."""

import csv
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.llm import Answer, llm, saying, text_of

from models.data.datasets import load_dataset
from models.labelling.store import AnswerStore
from service.cli import main

Said = pytest.CaptureFixture[str]
TEXTS = [f"text {number}" for number in range(12)]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """--data and --labels; every third text is red by human hand."""
    monkeypatch.delenv("GATEKEEPER_REMOTE_KEY", raising=False)
    with (tmp_path / "texts.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "colour"), *((text, colour(text)) for text in TEXTS), (TEXTS[0], "red")])
    (tmp_path / "labels.txt").write_text("red\ndark green\n\nred\n")
    return "--data", str(tmp_path / "texts.csv"), "--labels", str(tmp_path / "labels.txt")


def colour(text: str) -> str:
    return "red" if int(text.split()[1]) % 3 == 0 else "dark green"


def right(asked: dict[str, Any]) -> Answer:
    return saying(colour(text_of(asked)), prompt_tokens=1_000, completion_tokens=100)


def label(files: tuple[str, ...], url: str, output: Path, *more: object) -> int:
    remote = ("--remote-url", url, "--remote-model", "m", "--output", str(output))
    return main(["label", *files, *remote, *map(str, more)])


def test_texts_become_a_table_with_the_llms_labels(
    files: tuple[str, ...], tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEKEEPER_REMOTE_KEY", "sk-secret")
    output = tmp_path / "out" / "labelled.parquet"
    with llm(right) as (url, asked):
        money = ("--price-prompt", 2, "--price-completion", 10)
        assert label(files, f"{url}/v1", output, "--human-labels", "colour", "--twice", 4, *money) == 0
    said = capsys.readouterr()
    table = pq.read_table(output).to_pydict()
    assert table["text"] == TEXTS  # each once
    assert table["label"] == table["human"] == [colour(text) for text in TEXTS]
    assert len(asked) == 16
    assert asked[0]["authorization"] == "Bearer sk-secret"
    assert "12 of 12 texts have a label of m" in said.out
    assert "the same label to 100.0% of 4 texts" in said.out
    assert "agrees with the human labels on 100.0% of 12 texts" in said.out
    assert "have cost 0.0480 in all" in said.out  # 16 calls of 1,000 tokens at 2 and 100 at 10 a million
    assert "may forbid to train a model on its answers" in said.err
    kept = output.with_name("labelled.parquet.answers.jsonl")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert "sk-secret" not in kept.read_text() + said.out + said.err
    assert not any(text in kept.read_text() for text in TEXTS)
    data = load_dataset(str(output), None)
    assert data.licence == "labels of the LLM m: an accuracy is agreement with it"
    assert any("agreement with it" in note for note in data.notes)
    assert load_dataset(str(output), None, label_column="human").licence == "not stated"
    with llm(right) as (url, asked):
        assert label(files, url, output) == 0
    assert asked == [], "it is not asked again, wherever it lives now"


def test_the_cost_is_estimated_before_anything_is_asked(files: tuple[str, ...], tmp_path: Path, capsys: Said) -> None:
    assert label(files, "http://127.0.0.1:1", tmp_path / "o.parquet", "--dry-run", "--price-prompt", 1_000) == 0
    assert "12 of 12 calls are to be made: about " in capsys.readouterr().err
    assert not list(tmp_path.glob("o.*"))


def test_a_budget_ends_the_run_and_the_next_goes_on(files: tuple[str, ...], tmp_path: Path, capsys: Said) -> None:
    output = tmp_path / "o.parquet"
    options = ("--price-prompt", 1_000, "--concurrency", 1)  # a call costs 1
    with llm(right) as (url, asked):
        assert label(files, url, output, *options, "--budget", 3.5) == 3
        assert len(asked) == 4  # what a question may cost is estimated: below its 1,000 tokens
        assert "the budget is spent" in capsys.readouterr().err
        assert not output.exists()
        assert label(files, url, output, *options, "--budget", 100) == 0
    assert len(asked) == 12
    assert pq.read_table(output).num_rows == 12


def test_a_kill_loses_the_calls_that_are_out(files: tuple[str, ...], tmp_path: Path) -> None:
    output = tmp_path / "o.parquet"

    def dies(asked: dict[str, Any]) -> Answer:
        return right(asked) if int(text_of(asked).split()[1]) < 5 else (401, {"error": {"message": "revoked"}})

    with llm(dies) as (url, _):
        assert label(files, url, output, "--concurrency", 1) == 2
    kept = output.with_name("o.parquet.answers.jsonl")
    with kept.open("a") as stream:
        stream.write('{"key": "cut')
    with llm(right) as (url, asked):
        assert label(files, url, output) == 0
    assert len(asked) == 7
    assert pq.read_table(output).num_rows == 12


def test_what_is_no_label_is_listed_and_counted(files: tuple[str, ...], tmp_path: Path, capsys: Said) -> None:
    output = tmp_path / "o.parquet"

    def odd(asked: dict[str, Any]) -> Answer:
        number = int(text_of(asked).split()[1])
        if number == 3:
            return 400, {"error": {"code": "content_filter", "message": "filtered"}}
        return saying("who knows") if number == 2 else right(asked)

    with llm(odd) as (url, _):
        assert label(files, url, output) == 0
    said = capsys.readouterr()
    assert "10 of 12 texts have a label" in said.out
    assert "1 foreign-label" in said.out
    assert "1 content-filter" in said.out
    with output.with_suffix(".unlabelled.csv").open(newline="") as stream:
        assert list(csv.reader(stream)) == [
            ["text", "fault"],
            ["text 2", "foreign-label"],
            ["text 3", "content-filter"],
        ]
    assert pq.read_table(output)["text"].to_pylist() == [text for text in TEXTS if text not in ("text 2", "text 3")]


def test_what_a_server_does_not_take_is_left_out_and_what_may_pass_is_tried_again(
    files: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.labelling.client.PAUSE_S", (0.0, 0.0))
    busy = iter([429, 503])

    def picky(asked: dict[str, Any]) -> Answer:
        if "logprobs" in asked:
            return 400, {"detail": "logprobs is not supported"}
        status = next(busy, 200)
        return right(asked) if status == 200 else (status, {})

    with llm(picky) as (url, asked):
        assert label(files, url, tmp_path / "o.parquet", "--concurrency", 1) == 0
    assert len(asked) == 12 + 3


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda _: (401, {}), "refuses the key (401): set GATEKEEPER_REMOTE_KEY"),
        (lambda _: (404, {"error": {"message": "model m does not exist"}}), "has no model 'm': give --remote-model"),
        (lambda _: (404, {}), "answers 404 to /v1/chat/completions: is it the URL of a chat endpoint?"),
        (lambda _: (429, {"error": {"code": "insufficient_quota"}}), "the account has no quota left"),
        (lambda _: (500, {}), "does not answer (it answers 500, 6 times): what was answered is kept"),
    ],
)
def test_where_no_question_can_be_answered_one_line_says_so(
    answer: Callable[[dict[str, Any]], Answer],
    words: str,
    files: tuple[str, ...],
    tmp_path: Path,
    capsys: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("models.labelling.client.PAUSE_S", (0.0, 0.0))
    with llm(answer) as (url, _):
        assert label(files, url, tmp_path / "o.parquet") == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "o.parquet").exists()


def test_a_text_that_the_server_rejects_is_listed_and_asked_again_later(
    files: tuple[str, ...], tmp_path: Path, capsys: Said
) -> None:
    output = tmp_path / "o.parquet"

    def picky(asked: dict[str, Any]) -> Answer:
        return (400, {"error": "bad request"}) if text_of(asked) == TEXTS[4] else right(asked)

    with llm(picky) as (url, _):
        assert label(files, url, output, "--concurrency", 1) == 0
    assert "the others: 1 rejected" in capsys.readouterr().out
    with llm(right) as (url, asked):
        assert label(files, url, output) == 0
    assert [text_of(one) for one in asked] == [TEXTS[4]]
    assert pq.read_table(output).num_rows == 12
    assert not output.with_suffix(".unlabelled.csv").exists()


def test_answers_of_which_none_is_a_label_end_the_run(tmp_path: Path, files: tuple[str, ...], capsys: Said) -> None:
    many = tmp_path / "many.csv"
    many.write_text("text\n" + "".join(f"text {number}\n" for number in range(60)))
    with llm(lambda _: saying("Who knows?")) as (url, asked):
        options = ("--data", str(many), "--concurrency", "1")
        assert label((*files, *options), url, tmp_path / "o.parquet") == 2
    assert "none of the first 20 answers is a label (20 foreign-label)" in capsys.readouterr().err.splitlines()[-1]
    assert len(asked) == 20


def test_what_others_have_made_is_not_replaced(files: tuple[str, ...], tmp_path: Path, capsys: Said) -> None:
    own = tmp_path / "own.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "label": ["red", "red"]}), own)
    before = own.read_bytes()
    assert label(("--data", str(own), *files[2:]), "http://127.0.0.1:1", own) == 2
    assert label(files, "http://127.0.0.1:1", own) == 2
    assert "was not written by this command" in capsys.readouterr().err
    assert own.read_bytes() == before
    with AnswerStore(tmp_path / "o.parquet.answers.jsonl").appending(), llm(right) as (url, asked):
        assert label(files, url, tmp_path / "o.parquet") == 2
    assert asked == []
    assert "another run is writing" in capsys.readouterr().err


def test_a_key_or_a_url_that_cannot_be_sent_is_told_first(
    files: tuple[str, ...], tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url, key, words in (
        ("http://h/v1/chat/completions", "k", "is added: give http://h/v1"),
        ("http://me:secretpw@h", "k", "must be scheme, host, port and path alone"),
        ("http://h", "two lines\n", "GATEKEEPER_REMOTE_KEY must be visible ASCII characters"),
    ):
        monkeypatch.setenv("GATEKEEPER_REMOTE_KEY", key)
        assert label(files, url, tmp_path / "o.parquet", "--dry-run") == 2
        said = capsys.readouterr().err
        assert words in said.splitlines()[-1]
        assert "secretpw" not in said
    assert not list(tmp_path.glob("o.*"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--text-column", "body"), "has no column 'body'; there is text, colour: give --text-column"),
        (("--human-labels", "x"), "has no column 'x'"),
        (("--output", "labelled.csv"), "--output is a .parquet file"),
        (("--budget", "1"), "--budget needs --price-prompt"),
        (("--budget", "nan", "--price-prompt", "1"), "--budget must be above 0, not nan"),
        (("--price-prompt", "-1"), "--price-prompt must be 0 or more"),
        (("--concurrency", "0"), "--concurrency must be from 1"),
        (("--labels", "nowhere"), "nowhere cannot be read"),
        (("--data", "nowhere.csv"), "nowhere.csv does not exist"),
        (("--prompt", "nowhere"), "the question to the LLM cannot be made"),
        (("--remote-url", "somewhere"), "--remote-url takes a URL"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_paid(
    options: tuple[str, ...], words: str, files: tuple[str, ...], tmp_path: Path, capsys: Said
) -> None:
    assert label(files, "http://127.0.0.1:1", tmp_path / "o.parquet", *options) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
