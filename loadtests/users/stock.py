"""What users send: items with their right labels where they have one, and bodies that must be refused.

For texts the sentences of this project, or CLINC150's test split; for images drawings, or Fashion-MNIST's test split.
`easy` items are what the model was made for; `hard` ones are the same in unusual words; `odd` ones have no right label.
"""

import base64
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loadtests.common import datasets, own_data, silhouettes
from loadtests.common.sentences import EASY_LABELS, HARD_LABELS, MALFORMED, ODD

JSON = "application/json"
BOUNDARY = "----loadtest-7d1f0c"
ITEM_KINDS = ("easy", "hard", "odd")
VARIATIONS = 30  # drawings of each class
SENTENCES = ("written", "clinc150")
IMAGES = ("auto", "drawn", "fashion-mnist")


@dataclass(frozen=True)
class Malformed:
    """A body that must be refused, and what is wrong with it."""

    wrong: str
    content_type: str
    body: bytes


@dataclass(frozen=True)
class Stock:
    """Items by kind. An item is a text or the bytes of a PNG; `labels` has the right one in the same place, or None."""

    name: str
    items: dict[str, Sequence[str | bytes]]
    labels: dict[str, Sequence[str] | None]
    malformed: Sequence[Malformed]
    weights: dict[str, int]  # of the kinds of request, where no mix is given

    def pick(self, kind: str) -> tuple[str | bytes, str | None]:
        """An item of that kind, with its right label."""
        position = random.randrange(len(self.items[kind]))
        labels = self.labels[kind]
        return self.items[kind][position], None if labels is None else labels[position]


def sentences(name: str) -> Stock:
    """The stock of texts of that name. Raises DataMissing."""
    if name == "clinc150":
        labelled, out_of_scope = datasets.clinc150()
        items: dict[str, Sequence[str | bytes]] = {"easy": tuple(labelled), "odd": out_of_scope}
        labels: dict[str, Sequence[str] | None] = {"easy": tuple(labelled.values()), "odd": None}
        return Stock("CLINC150's test sentences", items, labels, _MALFORMED_TEXTS, _weights(items))
    items = {"easy": tuple(EASY_LABELS), "hard": tuple(HARD_LABELS), "odd": ODD}
    labels = {"easy": tuple(EASY_LABELS.values()), "hard": tuple(HARD_LABELS.values()), "odd": None}
    return Stock("sentences of this project", items, labels, _MALFORMED_TEXTS, _weights(items))


def images(name: str) -> Stock:
    """The stock of images of that name; `auto`: Fashion-MNIST's where they are. Raises DataMissing."""
    odd = silhouettes.odd_pictures(VARIATIONS * 4)
    if name == "fashion-mnist" or (name == "auto" and datasets.path_of("fashion-mnist")):
        pictures, classes = datasets.fashion_mnist(silhouettes.CLASSES)
        title, easy, right = "Fashion-MNIST's test images", pictures, classes
    else:
        drawn = [(png, label) for label in silhouettes.CLASSES for png in silhouettes.pictures(label, VARIATIONS)]
        title, easy, right = "drawings of this project", [png for png, _ in drawn], tuple(label for _, label in drawn)
    items: dict[str, Sequence[str | bytes]] = {"easy": easy, "odd": odd}
    return Stock(title, items, {"easy": right, "odd": None}, _malformed_images(odd[0]), _weights(items, file=2))


def own(path: str, text: str, label: str) -> Stock:
    """The stock of somebody's own examples. Raises BadData."""
    examples = own_data.read(Path(path), text, label)
    items: dict[str, Sequence[str | bytes]] = {"easy": tuple(item for item, _ in examples)}
    labels: dict[str, Sequence[str] | None] = {"easy": tuple(right for _, right in examples)}
    first = examples[0][0]
    if isinstance(first, bytes):
        return Stock(f"the images in {path}", items, labels, _malformed_images(first), _weights(items, file=2))
    return Stock(f"the texts in {path}", items, labels, _MALFORMED_TEXTS, _weights(items))


def known_to(goods: Stock, known: Sequence[str]) -> tuple[Stock, str | None]:
    """The stock for an edge with those labels, and a warning where they are others than those of its items.

    Nothing is said of the accuracy where most labels are unknown: it would be next to 0, whatever the models are worth.
    """
    mine = {label for labels in goods.labels.values() for label in labels or ()}
    foreign = mine - set(known)
    if not known or not foreign:
        return goods, None
    warning = (
        f"warning: {len(foreign)} of the {len(mine)} labels of {goods.name} are unknown to the edge, "
        f"such as {min(foreign)[:60]!r}"
    )
    if 2 * len(foreign) > len(mine):
        unlabelled: dict[str, Sequence[str] | None] = dict.fromkeys(goods.labels)
        warning += ": joint accuracy is not measured, and the deferral ratio says nothing about your traffic"
        return replace(goods, labels=unlabelled), f"{warning}; give examples of your own with --data"
    return goods, f"{warning}: its answers to those are counted as wrong"


def inputs(item: str | bytes) -> Any:
    """An item as it stands in a request's `inputs`."""
    return item if isinstance(item, str) else {"image": base64.b64encode(item).decode("ascii")}


def form(*files: bytes) -> tuple[str, bytes]:
    """(content type, body) of a form with those files as images."""
    parts = [
        f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="images"; filename="{number}.png"\r\n'
        "content-type: image/png\r\n\r\n".encode()
        + content
        + b"\r\n"
        for number, content in enumerate(files)
    ]
    return f"multipart/form-data; boundary={BOUNDARY}", b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def _weights(items: dict[str, Sequence[str | bytes]], **more: int) -> dict[str, int]:
    weights = {"easy": 12, "hard": 3, "odd": 3}
    return {kind: weights[kind] for kind in ITEM_KINDS if kind in items} | {"list": 4, "malformed": 1} | more


def _malformed_images(png: bytes) -> Sequence[Malformed]:
    """Around a whole PNG, of which some get a part."""
    text = b"a text file, and no image\n"
    documents: dict[str, Any] = {
        "not base64": {"inputs": {"image": "what is my balance?"}},
        "half a PNG": {"inputs": inputs(png[: len(png) // 2])},
        "a text file": {"inputs": inputs(text)},
        "nothing": {"inputs": {"image": ""}},
        "an empty list": {"inputs": []},
        "a text": {"inputs": "what is my balance"},
        "a good one and a bad one": {"inputs": [inputs(png), inputs(text)]},
        "an unknown field": {"inputs": {"picture": "AAAA"}},
        "an unknown parameter": {"inputs": inputs(png), "parameters": {"temperature": 0.7}},
    }
    as_json = [Malformed(wrong, JSON, json.dumps(document).encode()) for wrong, document in documents.items()]
    forms = {"a text file": (text,), "half a PNG": (png[: len(png) // 2],), "an empty file": (b"",), "no file": ()}
    as_forms = [Malformed(f"{wrong}, in a form", *form(*files)) for wrong, files in forms.items()]
    cut_off = Malformed("a form cut off", form(png)[0], form(png)[1][:-20])
    return [*as_json, *as_forms, cut_off, Malformed("not JSON", JSON, b"what is my balance")]


_MALFORMED_TEXTS = [Malformed(wrong, JSON, body.encode()) for wrong, body in MALFORMED]
