"""`gatekeeper import`: a classifier that is fine-tuned already becomes a bundle, or one line says why it does not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.tiny import write_tiny_csv
from support.tiny_models import KINDS, write_model
from test_tune import gatekeeper, one_line
from tokenizers import Tokenizer

from models.bundle import load_bundle
from models.inference.classifier import load_classifier

LABELS = ["balance", "timer", "weather"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model("distilbert", tmp_path_factory.mktemp("tuned") / "distilbert", LABELS)


@pytest.fixture
def source(tmp_path: Path, tuned: Path) -> Path:
    """A copy that the test may break."""
    return Path(shutil.copytree(tuned, tmp_path / "source"))


def configure(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_it_answers_as_transformers_does(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source / "README.md").write_text("---\nlanguage: en\nlicense: cc-by-4.0\n---\n# Mine\n")
    code, _, said = gatekeeper(capsys, "import", source, "--output", tmp_path / "one", "--name", "mine")
    assert code == 0
    assert "cc-by-4.0" in said
    bundle = load_bundle(tmp_path / "one")
    assert (bundle.manifest.name, bundle.manifest.labels) == ("mine", tuple(LABELS))
    assert bundle.manifest.max_tokens == 64
    assert "cc-by-4.0" in (tmp_path / "one" / "README.md").read_text()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(source).eval()
    ids = Tokenizer.from_file(str(source / "tokenizer.json")).encode("how is the rain today").ids
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits.softmax(-1)[0]
    (prediction,) = load_classifier(bundle).predict(["how is the rain today"])
    assert prediction.probabilities.tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_it_is_calibrated_and_evaluated_like_a_tuned_one(
    tmp_path: Path, tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--data", write_tiny_csv(tmp_path / "rows.csv"))
    bundle = tmp_path / "small"
    assert gatekeeper(capsys, "import", tuned, "--output", bundle)[0] == 0
    write_model("bart", tmp_path / "bart", LABELS)
    assert gatekeeper(capsys, "import", tmp_path / "bart", "--output", tmp_path / "large")[0] == 0
    large = ("--large", tmp_path / "large")
    code, printed, _ = gatekeeper(capsys, "calibrate", bundle, *data, *large, "--target-deferral-ratio", 0.3, "--write")
    assert code == 0
    assert "expected joint accuracy" in printed
    assert gatekeeper(capsys, "evaluate", bundle, *data, *large, "--write-card")[0] == 0
    card = (bundle / "README.md").read_text()
    assert "fine-tuned elsewhere" in card
    assert "None" not in card


def test_labels_that_the_data_do_not_have_are_not_guessed_by_their_order(
    tmp_path: Path, tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gatekeeper(capsys, "import", tuned, "--output", tmp_path / "one", "--labels", "a,b,c")[0] == 0
    data = write_tiny_csv(tmp_path / "rows.csv")
    code, _, complaint = gatekeeper(capsys, "calibrate", tmp_path / "one", "--data", data)
    assert code == 2
    assert "the labels of rows.csv are not those of the bundle" in one_line(complaint)


def test_numbered_labels_are_noted_and_may_be_named(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbered = {f"LABEL_{place}": place for place in range(3)}
    configure(source, label2id=numbered, id2label={str(place): label for label, place in numbered.items()})
    code, _, said = gatekeeper(capsys, "import", source, "--output", tmp_path / "one")
    assert code == 0
    assert "give --labels" in said
    (tmp_path / "names.txt").write_text("\ufeffbalance\ntimer, set\nweather\n", encoding="utf-8")
    for given, expected in ((tmp_path / "names.txt", "timer, set"), ("balance, timer, weather", "timer")):
        directory = tmp_path / f"named-{expected[-3:]}"
        code, _, said = gatekeeper(capsys, "import", source, "--output", directory, "--labels", given)
        assert code == 0
        assert "give --labels" not in said
        assert load_bundle(directory).manifest.labels == ("balance", expected, "weather")
        assert json.loads((directory / "config.json").read_text())["id2label"]["1"] == expected


def test_half_precision_in_shards_is_one_file_of_whole_precision(
    tmp_path: Path, tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "sharded"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tuned).half()
    model.save_pretrained(source, max_shard_size="20KB")
    shutil.copy(tuned / "tokenizer.json", source)
    assert not (source / "model.safetensors").exists()
    code, _, said = gatekeeper(capsys, "import", source, "--output", tmp_path / "one")
    assert code == 0
    assert "float16" in said
    weights = load_file(tmp_path / "one" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    next(source.glob("model-00002-*")).unlink()
    code, _, complaint = gatekeeper(capsys, "import", source, "--output", tmp_path / "two")
    assert code == 2
    assert "model-00002-of" in one_line(complaint)


def test_a_tokenizer_is_made_of_an_older_models_vocabulary(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "tokenizer.json").unlink()
    code, _, complaint = gatekeeper(capsys, "import", source, "--output", tmp_path / "one")
    assert code == 2
    assert "tokenizer.json is missing, as is vocab.txt; make one" in one_line(complaint)
    (source / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nrain\n")
    assert gatekeeper(capsys, "import", source, "--output", tmp_path / "one")[0] == 0
    assert Tokenizer.from_file(str(tmp_path / "one" / "tokenizer.json")).encode("Rain").ids == [2, 4, 3]


def _without_a_number(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    weights["classifier.weight"][0, 0] = float("nan")
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


def _adapter(directory: Path) -> None:
    (directory / "config.json").unlink()
    (directory / "adapter_config.json").write_text("{}")


def _replaced(name: str, content: bytes | Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def replace(directory: Path) -> None:
        path = directory / name
        path.write_bytes(content if isinstance(content, bytes) else content(path.read_bytes()))

    return replace


def _configured(**changes: Any) -> Callable[[Path], object]:
    return lambda directory: configure(directory, **changes)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (_configured(problem_type="regression"), "no label"),
        (_configured(problem_type="multi_label_classification"), "multi-label"),
        (_configured(id2label={"0": "a"}, label2id={"a": 0}), "one output"),
        (_configured(id2label={"0": "a", "1": "b", "7": "c"}), "give --labels"),
        (_configured(id2label={"0": "a", "1": "b", "2": "a"}), "two labels are 'a'"),
        (_configured(id2label={"0": "a", "1": "b", "2": None}), "None is no text"),
        (_configured(id2label={"0": "a", "1": "b", "2": " "}), "a label is empty"),
        (_configured(id2label={"0": "a", "1": "b", "2": "\ud800"}), "half a character"),
        (_configured(id2label={"0": "a", "1": "b"}), "no classifier with 2 outputs"),
        (_configured(model_type="mine", auto_map={"AutoConfig": "mine.Config"}), "auto_map"),
        (_configured(auto_map={"AutoModelForSequenceClassification": "mine.Model"}), "auto_map"),
        (_configured(model_type="mine"), "does not recognize"),
        (_configured(model_type="pegasus"), "no classifier of this kind"),
        (_configured(quantization_config={"quant_method": "gptq"}), "quantised"),
        (_configured(dim="many"), "'dim'"),
        (_configured(dim=64), "another shape than config.json says"),
        (_adapter, "LoRA adapter"),
        (lambda directory: (directory / "model.safetensors").rename(directory / "pytorch_model.bin"), "convert it"),
        (lambda directory: (directory / "model.safetensors").unlink(), "model.safetensors is missing"),
        (_replaced("model.safetensors", lambda whole: whole[:20_000]), "incomplete"),
        (_replaced("model.safetensors", b""), "cannot be loaded"),
        (_without_a_number, "NaN or infinite"),
        (_replaced("config.json", b""), "is no JSON"),
        (_replaced("config.json", lambda whole: whole[:100]), "is no JSON"),
        (_replaced("config.json", b"[]"), "no JSON object"),
        (_replaced("config.json", b'{"a": "\xe9"}'), "cannot be read"),
        (_replaced("config.json", b"[" * 100_000), "too deep"),
        (_replaced("config.json", b" " * 20_000_000), "larger than 16 MiB"),
        (_replaced("tokenizer.json", lambda whole: whole[:300]), "cannot be read"),
    ],
)
def test_what_is_no_classifier_is_one_line_and_no_bundle(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], break_it: Callable[[Path], object], words: str
) -> None:
    break_it(source)
    code, _, complaint = gatekeeper(capsys, "import", source, "--output", tmp_path / "out" / "one")
    assert code == 2
    assert words in one_line(complaint)
    assert len(complaint.strip().splitlines()) == 1
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("kind", ["distilbert", "gpt2", "t5"])
def test_a_base_model_has_no_head_to_import(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_model(kind, tmp_path / "base")
    code, _, complaint = gatekeeper(capsys, "import", source, "--output", tmp_path / "one")
    assert code == 2
    assert "gatekeeper tune --model" in one_line(complaint)


def test_an_answer_that_depends_on_its_batch_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """XLNet reads the last place of the batch, which is padding for all texts but the longest."""
    model: Any = transformers.XLNetForSequenceClassification(
        transformers.XLNetConfig(vocab_size=512, d_model=32, n_layer=1, n_head=2, d_inner=64)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "xlnet")
    tokenizer = KINDS["t5"].tokenizer
    assert tokenizer is not None
    tokenizer().save(str(tmp_path / "xlnet" / "tokenizer.json"))
    code, _, complaint = gatekeeper(capsys, "import", tmp_path / "xlnet", "--output", tmp_path / "one")
    assert code == 2
    assert "other inputs stand beside one" in one_line(complaint)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--labels", "a,b"), "has 2 names, and the model has 3 outputs"),
        (("--labels", "a,b,a"), "two labels are 'a'"),
        (("--labels", "a,b,"), "a label is empty"),
        (("--labels", "names.txt"), "no such file"),
        (("--labels", ""), "no such file"),
        (("--labels", "x" * 5000), "cannot be read"),
        (("--max-tokens", 0), "1 or more"),
        (("--max-tokens", 2), "hold none of a text"),
        (("--name", "a b"), "names the bundle"),
    ],
)
def test_an_option_that_does_not_fit_is_one_line(
    tmp_path: Path, tuned: Path, capsys: pytest.CaptureFixture[str], options: tuple[object, ...], words: str
) -> None:
    code, _, complaint = gatekeeper(capsys, "import", tuned, "--output", tmp_path / "one", *options)
    assert code == 2
    assert words in one_line(complaint)
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_labels_in_another_encoding_are_one_line(
    tmp_path: Path, tuned: Path, capsys: pytest.CaptureFixture[str], encoding: str
) -> None:
    (tmp_path / "names.txt").write_bytes("é\nb\nc\n".encode(encoding))
    code, _, complaint = gatekeeper(
        capsys, "import", tuned, "--output", tmp_path / "one", "--labels", tmp_path / "names.txt"
    )
    assert code == 2
    assert "is not UTF-8" in one_line(complaint)


def test_what_is_there_is_not_overwritten(tmp_path: Path, tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gatekeeper(capsys, "import", tuned, "--output", tmp_path / "one")[0] == 0
    before = load_bundle(tmp_path / "one")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("mine")
    for output, words in (("one", "is a bundle already"), ("notes", "not a bundle"), ("notes/thesis.txt", "is a file")):
        code, _, complaint = gatekeeper(capsys, "import", tuned, "--output", tmp_path / output)
        assert code == 2
        assert words in one_line(complaint)
    assert load_bundle(tmp_path / "one") == before
    code, _, complaint = gatekeeper(capsys, "import", tmp_path / "one", "--output", tmp_path / "two")
    assert code == 2
    assert "gatekeeper calibrate takes it" in one_line(complaint)


@pytest.mark.parametrize(
    ("source", "words"),
    [("./none", "no such directory"), ("some/where/else", "no such directory"), ("config.json", "no such directory")],
)
def test_a_model_that_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, words: str
) -> None:
    code, _, complaint = gatekeeper(capsys, "import", source, "--output", tmp_path / "one")
    assert code == 2
    assert words in one_line(complaint)
