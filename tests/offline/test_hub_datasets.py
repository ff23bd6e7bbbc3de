"""Datasets of the hub: what its library returns is read, and a hub out of reach is one line."""

import io
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
from support.loading import sizes
from support.tiny import jpeg, tiny_images

from models.data.hub_datasets import hub_source
from models.data.records import Columns
from models.data.splits import build
from models.errors import InputError

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    """At once, not after half a minute of tries. Port 9 of this machine stands for a network that is down."""
    code = "from models.data.datasets import load_dataset; load_dataset('owner/name', None)"
    for setting in ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}):
        environment = {**os.environ, "HF_HOME": str(tmp_path), **setting}
        run = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
        last = run.stderr.splitlines()[-1]
        assert last.startswith("models.errors.InputError: owner/name is no file or directory here"), run.stderr
        assert "cannot be had from the hub" in last
        assert "Retry" not in run.stderr


def test_a_hub_dataset_of_texts() -> None:
    """Names of labels in their order there; a split without labels and one of another name are noted, not read."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["spam", "ham", "x"])}
    )

    def part(labels: list[int], prefix: str) -> datasets.Dataset:
        columns = {"text": [f"{prefix} {n}" for n in range(len(labels))], "label": labels}
        return datasets.Dataset.from_dict(columns, features=features)

    found = datasets.DatasetDict(
        {
            "train": part([0, 1] * 20, "train"),
            "validation": part([0, 1] * 2, "validation"),
            "test": part([-1, -1], "test"),
            "unsupervised": part([-1], "more"),
        }
    )
    data = build(hub_source("owner/name", found, "mit", Columns()))
    assert data.labels == ("spam", "ham")
    assert sizes(data) == [32, 2, 2, 8]
    assert (data.name, data.licence, data.task) == ("owner/name", "mit", "text-classification")
    assert data.notes == (
        "owner/name: the split test is not read, it has no labels",
        "owner/name: the split unsupervised is not read",
    )
    assert (data.train.inputs[0], data.train.labels[0]) in {("train 0", 0), ("train 1", 1)}

    refusals = {
        "has no column 'labels'; there is 'text', 'label'": (found, Columns("text", "labels")),
        "has no column 'words'": (found, Columns("words", "label")),
        "has no split train; there is test": (datasets.DatasetDict({"test": found["test"]}), Columns()),
        "train: row 2 has the label -1 of 0 to 2": (datasets.DatasetDict({"train": part([0, -1], "t")}), Columns()),
    }
    for message, (some, columns) in refusals.items():
        with pytest.raises(InputError) as caught:
            hub_source("owner/name", some, "mit", columns)
        assert message in str(caught.value)


def test_a_hub_dataset_of_images() -> None:
    def part(contents: list[bytes | None]) -> datasets.Dataset:
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        columns = {
            "image": [{"bytes": b, "path": None} for b in contents],
            "label": [n % 2 for n in range(len(contents))],
        }
        return datasets.Dataset.from_dict(columns, features=features)

    images = [jpeg(image) for image in tiny_images(0, 24)]
    found = datasets.DatasetDict({"train": part(images[:20]), "test": part(images[20:])})
    data = build(hub_source("owner/name", found, "mit", Columns()))
    assert data.task == "image-classification"
    assert sizes(data) == [16, 2, 2, 4]
    assert data.labels == ("0", "1")
    assert (data.test.inputs[1] == np.asarray(PIL.Image.open(io.BytesIO(images[21])))).all()
    broken = datasets.DatasetDict({"train": part([*images[:9], images[9][:200]])})
    with pytest.raises(InputError, match="owner/name, train: row 10: the image cannot be read"):
        hub_source("owner/name", broken, "mit", Columns())
