"""The report: one page that needs nothing, says what the numbers say, and lets nobody else's text speak for it."""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest
from support.reports import ABOUT, FOREIGN, HOSTILE, birds, report

from models.errors import InputError
from models.evaluation.report import plots
from models.evaluation.report.canvas import WIDTH
from models.evaluation.report.page import write_report
from models.evaluation.report.text import summarise
from models.evaluation.report.wording import percent
from models.numbers.metrics import measure
from models.numbers.predictions import Predictions

VOID = {"meta", "input", "img", "wbr", "path", "use", "rect", "br"}

PICTURES = tuple(name for name in plots.NAMES if name != "entropy")  # which is of models that write text


class Page(HTMLParser):
    """Elements with their attributes, the text of all, and the rows of every table by the heading above it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.contents: dict[str, list[str]] = {}
        self._open: list[str] = []
        self._heading = ""
        self.feed(html)
        self.close()
        assert not self._open

    @property
    def text(self) -> str:
        return " ".join(" ".join(part for name in self.contents for part in self.contents[name]).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)
            self.contents.setdefault(tag, []).append("")
        if tag == "tr":
            self.tables.setdefault(self._heading, []).append([])
        if tag in {"td", "th"}:
            self.tables[self._heading][-1].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open:
            return
        self.contents[self._open[-1]][-1] += data
        if self._open[-1] in {"h2", "h3"}:
            self._heading = data
        if {"td", "th"} & set(self._open):
            self.tables[self._heading][-1][-1] += data


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("report")
    (directory / "plots").mkdir()
    report(directory, birds())
    return directory


@pytest.fixture(scope="module")
def page(directory: Path) -> Page:
    return Page((directory / "report.html").read_text(encoding="utf-8"))


def check_pictures(directory: Path, names: set[str]) -> None:
    assert {path.stem for path in (directory / "plots").iterdir()} == names
    for name in names:
        with Image.open(directory / "plots" / f"{name}.png") as image:
            assert image.width == 2 * WIDTH
            assert len(image.convert("RGB").getcolors(1 << 20)) > 50


# ---- one file that needs nothing


def test_nothing_of_the_page_lies_outside_of_it(directory: Path, page: Page) -> None:
    html = (directory / "report.html").read_text(encoding="utf-8")
    assert "//" not in html
    assert not {"link", "iframe", "object", "embed", "base", "form", "audio", "video"} & {
        tag for tag, _ in page.elements
    }
    for _, attributes in page.elements:
        addresses = [attributes.get(name) or "#" for name in ("src", "href", "xlink:href", "srcset", "action")]
        assert all(address.startswith(("#", "data:")) for address in addresses)
        assert not [name for name in attributes if name.startswith("on")]
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


def test_only_the_pages_own_script_may_run(page: Page) -> None:
    policy = next(dict(a)["content"] for tag, a in page.elements if "http-equiv" in a and tag == "meta")
    data, script = page.contents["script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert len(script.strip().splitlines()) <= 60
    assert json.loads(data)["points"]


def test_ids_are_unique_and_every_reference_has_its_target(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {(a.get("href") or a.get("xlink:href") or "#")[1:] for _, a in page.elements} - {""}
    targets |= {target for _, a in page.elements for target in re.findall(r"url\(#([^)]*)\)", str(a))}
    assert targets <= set(ids)


def test_the_same_input_gives_the_same_bytes(directory: Path, tmp_path: Path) -> None:
    report(tmp_path, birds())
    names = ["report.html", *(f"plots/{name}.png" for name in PICTURES)]
    assert [name for name in names if (tmp_path / name).read_bytes() != (directory / name).read_bytes()] == []


def test_every_picture_is_there_twice_and_described(directory: Path, page: Page) -> None:
    check_pictures(directory, set(PICTURES))
    described = [attributes["aria-label"] for tag, attributes in page.elements if tag == "svg"]
    assert len(described) == len(PICTURES)
    assert all(len(text or "") > 30 for text in described)


def test_the_colours_of_the_pictures_are_the_pages(directory: Path) -> None:
    svgs = re.findall(r"<svg.*?</svg>", (directory / "report.html").read_text(encoding="utf-8"), re.DOTALL)
    assert not [colour for svg in svgs for colour in re.findall(r"#[0-9a-f]{6}\b", svg)]
    assert all("var(--ink)" in svg or "var(--muted)" in svg for svg in svgs)


def test_a_browser_runs_the_script_without_an_error(directory: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    address = (directory / "report.html").as_uri()
    run = subprocess.run([browser, *options, address], capture_output=True, text=True, timeout=50, check=True)
    assert "CONSOLE" not in run.stderr, run.stderr
    shown = dict(re.findall(r'<dd id="(at-[a-z]+)">([^<]*)</dd>', run.stdout))
    deferred = float((birds().confidence < 0.7).mean())
    assert shown["at-threshold"] == "0.7"
    assert shown["at-ratio"].split()[0] == f"{100 * deferred:.1f}"
    assert '<circle class="mark"' in run.stdout


# ---- what it says


def test_the_numbers_of_the_page_are_those_measured(page: Page) -> None:
    numbers = measure(birds(), 0.7, resamples=20)
    rows = {row[0]: row[1:] for row in page.tables["Numbers"]}
    for name in ("a_S", "a_L", "h", "q", "s_o", "s_d", "s_d_oracle", "auroc", "aurc", "ece", "joint_accuracy"):
        entry = numbers[name]
        assert rows[name][:2] == [f"{entry['value']:.4f}", f"{entry['low']:.4f} to {entry['high']:.4f}"]
        assert rows[name][2]
    by_score = {row[0]: row[1:] for row in page.tables["The same answers under other scores"]}
    assert by_score["number"] == ["max_softmax", "margin"]
    assert by_score["auroc"][1] == f"{numbers['by_score']['margin']['auroc']:.4f}"


def test_a_threshold_of_the_page_does_what_the_page_says(page: Page) -> None:
    predictions = birds()
    assert predictions.large_correct is not None
    for threshold, ratio, joint, accepted in json.loads(page.contents["script"][0])["points"][::20]:
        above = predictions.confidence >= float(threshold)
        assert ratio == pytest.approx(1 - above.mean(), abs=1e-5)
        assert joint == pytest.approx(
            np.where(above, predictions.small_correct, predictions.large_correct).mean(), abs=1e-5
        )
        assert accepted == pytest.approx(predictions.small_correct[above].mean(), abs=1e-5)


def test_mistakes_are_sorted_by_confidence(page: Page) -> None:
    predictions = birds()
    wrong = predictions.confidence[predictions.small_correct == 0]
    title = f"of {len(wrong)} mistakes"
    for tables, best in (
        (page.tables[f"The most confident {title}"], -1),
        (page.tables[f"The least confident {title}"], 1),
    ):
        head, *rows = tables
        assert head == ["item", "expected", "predicted", "confidence", "large model", "gate"]
        assert len(rows) == 15
        shown = [float(row[3]) for row in rows]
        assert shown == pytest.approx(list(np.sort(wrong)[::best][:15]), rel=1e-3)
        assert [row[5] for row in rows] == ["accepted" if confidence >= 0.7 else "deferred" for confidence in shown]


def test_every_class_is_in_the_table(page: Page) -> None:
    predictions = birds()
    rows = {row[0]: row for row in page.tables["What is taken for what"] if len(row) == 5}
    crows = predictions.label == 2
    below = predictions.confidence < 0.7
    assert rows["crow_or_raven"][1:3] == [str(crows.sum()), percent(below[crows].mean())]


SAID = {
    "usual": ({}, ["answers 80.0", "The cascade is right in", "the large model alone 90.0"]),
    "unknown large model": ({"a_L": None}, ["What a large model would answer is not known"]),
    "worse large model": ({"a_L": 0.6}, ["no better than the small one", "s_d does not exist"]),
    "graded": ({"graded": True, "auroc": None}, ["has a mean correctness of"]),
    "nothing to separate": ({"auroc": None}, ["All answers are right, or all are wrong"]),
    "out of scope": ({"out_of_scope": {"rows": 1000, "deferral_ratio": 0.857}}, ["Of 1,000 out-of-scope queries 85.7"]),
}


@pytest.mark.parametrize("case", SAID)
def test_the_summary_says_what_the_numbers_allow(case: str) -> None:
    values = {"a_S": 0.8, "a_L": 0.9, "joint_accuracy": 0.88, "deferral_ratio": 0.2, "auroc": 0.9}
    other = {"rows": 4500, "threshold": 0.7, "graded": False, "out_of_scope": None}
    changes, sentences = SAID[case]
    for name, value in changes.items():
        (values if name in values else other)[name] = value
    if values["a_L"] is None:
        del values["a_L"], values["joint_accuracy"]
    entries = {name: {"value": value, "low": value, "high": value} for name, value in values.items()}
    text = summarise(entries | other, 0.9)
    assert [sentence for sentence in sentences if sentence not in text] == []
    assert ("The cascade" in text) == ("a_L" in values)
    assert ("of all pairs" in text) == (values["auroc"] is not None)


def test_thresholds_come_before_the_meaning_of_symbols(page: Page) -> None:
    headings = page.contents["h2"]
    assert headings.index("Choosing a threshold") < headings.index("Numbers")
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert links.index("#threshold") < links.index("#numbers")


def certified(of: str, target: float, predictions: Predictions, threshold: float = 0.7) -> str:
    """What the page says of such a certificate."""
    certificate = {"measure": of, "target": target, "threshold": 0.7, "certainty": 0.95, "items": 1500}
    numbers = measure(predictions, threshold, resamples=20) | {"certificate": certificate}
    with TemporaryDirectory() as directory:
        write_report(Path(directory), predictions, numbers, ABOUT)
        page = Page((Path(directory) / "report.html").read_text(encoding="utf-8"))
    assert "certificate" not in [row[0] for row in page.tables["Numbers"]]
    return next((told for told in page.contents["p"] if told.startswith("The certificate promises")), "")


@pytest.mark.slow
def test_a_certificate_above_the_measured_value_is_explained() -> None:
    """Within chance: how often a test of so many items would come out so low. Far below: what to do."""
    birds_ = birds()
    joint = np.where(birds_.confidence >= 0.7, birds_.small_correct, birds_.large_correct)
    wrong = int((joint == 0).sum())
    target = float(joint.mean()) + 0.005
    told = certified("joint accuracy", target, birds_)
    # What another library says of the chance of so many mistakes or more.
    chance = binomtest(wrong, 400, 1 - target, alternative="greater").pvalue
    assert f"measure {joint.mean():.4f}, which is less" in told
    assert f"in {100 * chance:.2g}\u00a0% of such tests: the two are within chance of each other" in told
    assert "in keeping with it" in certified("joint accuracy", float(joint.mean()) - 0.01, birds_)
    far = certified("joint accuracy", float(joint.mean()) + 0.08, birds_)
    assert "fewer than one of 1,000 such tests: chance hardly explains that" in far
    assert "calibrate anew" in far


@pytest.mark.slow
def test_each_measure_of_a_certificate_has_its_items() -> None:
    birds_ = birds()
    accepted = int((birds_.confidence >= 0.7).sum())
    assert f"these {accepted} test items measure" in certified("selective accuracy", 0.5, birds_)
    assert "these 400 test items measure" in certified("joint accuracy minus the large model's", -0.3, birds_)
    assert "of such tests" in certified("joint accuracy minus the large model's", 0.0, birds_)
    alone = replace(birds_, large_correct=None)
    assert certified("joint accuracy", 0.5, alone) == ""
    assert certified("selective accuracy", 0.5, alone) != ""
    assert certified("joint accuracy", 0.5, birds_, threshold=0.6) == "", "it is another threshold's"


# ---- unusual data


@pytest.mark.slow
def test_text_from_outside_stays_text(tmp_path: Path) -> None:
    predictions = replace(birds(names=FOREIGN), items=tuple(f"{HOSTILE} \u202e\x00\ud800 {row}" for row in range(400)))
    page = Page(report(tmp_path, predictions, about={"Small model": HOSTILE, HOSTILE: HOSTILE}))
    assert not [attributes for tag, attributes in page.elements if tag == "img" or "onerror" in attributes]
    assert len(page.contents["script"]) == 2
    assert HOSTILE in page.text
    assert page.tables["What is taken for what"][1][0] != ""
    # The picture in the page has the letters that the PNG's font lacks.
    assert any("日本語" in text for text in page.contents["text"])
    check_pictures(tmp_path, set(PICTURES))


def test_graded_answers_of_an_unbounded_score(tmp_path: Path) -> None:
    usual = birds()
    assert usual.large_correct is not None
    grades = np.clip(usual.confidence + np.linspace(-0.3, 0.3, 400), 0.0, 1.0)
    predictions = Predictions(9.0 * usual.confidence - 4.0, grades, usual.large_correct, {}, items=usual.items)
    page = Page(report(tmp_path, predictions, threshold=2.0))
    check_pictures(tmp_path, {"confidence", "deferral", "risk_coverage"})
    assert "No ROC curve: correctness is graded." in page.text
    assert "No reliability diagram" in page.text
    assert "an answer below 0.5 counts as a mistake" in page.text


def test_a_table_that_knows_neither_the_large_model_nor_classes_nor_items(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory / "plots", tmp_path / "plots")
    usual = birds()
    page = Page(report(tmp_path, Predictions(usual.confidence, usual.small_correct, None, {}), about={}))
    check_pictures(tmp_path, {"confidence", "roc", "reliability", "risk_coverage"})  # the earlier run's others are gone
    assert "No deferral curve" in page.text
    assert "The classes of the items are not known" in page.text
    assert "The items themselves are not part of these predictions" in page.text


def test_one_confidence_for_all_and_a_threshold_above_it(tmp_path: Path) -> None:
    constant = replace(birds(names=("no", "yes")), confidence=np.ones(400), scores={})
    page = Page(report(tmp_path, constant, threshold=1.5))
    check_pictures(tmp_path, set(PICTURES))
    assert "answers 0.0 % of the 400 test items itself." in page.text


def test_one_row_without_a_mistake(tmp_path: Path) -> None:
    one = np.ones(1)
    page = Page(report(tmp_path, Predictions(0.9 * one, one, one, {}, items=("tweet",))))
    check_pictures(tmp_path, {"confidence", "deferral", "reliability", "risk_coverage"})
    assert "makes no mistake" in page.text


def test_many_images_make_a_small_page(tmp_path: Path) -> None:
    rows = 40_000
    pixels = np.arange(28 * 28, dtype=np.uint16).reshape(28, 28).astype(np.uint8)
    photograph = np.full((200, 100, 3), (10, 200, 30), dtype=np.uint8)
    right = (np.arange(rows) >= 4).astype(np.float64)
    items = [photograph if row == 3 else pixels for row in range(rows)]
    html = report(tmp_path, replace(birds(rows), small_correct=right, items=items))
    assert len(html) < 250_000
    page = Page(html)
    assert [len(table) for title, table in page.tables.items() if title == "All mistakes: 4"] == [5]
    sources = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    images = [Image.open(io.BytesIO(base64.b64decode((source or "").partition(",")[2]))) for source in sources]
    assert sorted(image.size for image in images) == [(28, 28), (28, 28), (28, 28), (32, 64)]
    assert any(np.array_equal(np.asarray(image), pixels) for image in images)


def test_where_the_report_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(InputError, match=r"the report cannot be written to .*: Is a directory") as refused:
        report(tmp_path, Predictions(np.ones(1), np.ones(1), None, {}))
    assert "\n" not in str(refused.value)
    assert {path.suffix for path in (tmp_path / "plots").iterdir()} == {".png"}
