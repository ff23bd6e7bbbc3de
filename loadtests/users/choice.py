"""What a run sends, from its options and from what the edge serves; and what is wrong with them, in one line."""

import os
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from loadtests.common.datasets import DataMissing
from loadtests.common.options import between
from loadtests.common.own_data import BadData
from loadtests.users import mix, stock

TEXTS, IMAGES = "text-classification", "image-classification"
KEY_VARIABLE, DATA_VARIABLE = "GATEKEEPER_LOAD_KEY", "GATEKEEPER_LOAD_DATA"
WRONG_USE = 64  # exit code, sysexits.h's EX_USAGE: Locust itself has 1 and 2
TIMEOUT_S = 5.0


class WrongUse(Exception):
    """There can be no run like this. The message is one line, and says what to do."""


@dataclass(frozen=True)
class Choice:
    """What users of a task send, and how often each kind."""

    stock: stock.Stock
    weights: dict[str, int]
    headers: dict[str, str]


def add_arguments(parser: Any, **hidden: bool) -> None:
    """The options of every run, to Locust's parser or to our own; `hidden`: how Locust keeps one from its page."""
    parser.add_argument(
        "--data",
        type=path_type,
        default=os.environ.get(DATA_VARIABLE) or None,
        help=f"a .csv, .jsonl or .parquet file of texts and labels, or a folder of images by class; or {DATA_VARIABLE}",
        **hidden,
    )
    parser.add_argument("--text-column", default="text", help="of --data; default: text", **hidden)
    parser.add_argument("--label-column", default="label", help="of --data; default: label", **hidden)
    parser.add_argument(
        "--mix",
        type=mix_type,
        default="",
        metavar="easy=12,odd=3",
        help="how often each kind of request is sent: easy, hard, odd, list, file (images), malformed; default: all",
    )
    parser.add_argument(
        "--sentences",
        choices=stock.SENTENCES,
        default="written",
        help="of this project, or of GATEKEEPER_DATA_DIR CLINC150's test sentences (easy) and oos queries (odd)",
    )
    parser.add_argument(
        "--images",
        choices=stock.IMAGES,
        default="auto",
        help="drawings, or Fashion-MNIST's test images; auto: those, where GATEKEEPER_DATA_DIR has them",
    )
    parser.add_argument(
        "--request-timeout-ms",
        type=between(0, 86_400_000, int),
        default=0,
        help="the time that a user has, sent as x-request-timeout-ms; 0: none is sent",
    )


def path_type(text: str) -> str:
    """The type of --data: absolute, as Locust runs in another folder."""
    return str(Path(text).expanduser().resolve())


def mix_type(text: str) -> str:
    """The type of --mix: the text itself, if it is one."""
    try:
        if text:
            mix.parse(text)
    except mix.BadMix as bad:
        raise ArgumentTypeError(str(bad)) from None
    return text


def choose(task: str, options: Namespace, labels: Sequence[str] = ()) -> tuple[Choice, str | None]:
    """What users of that task send to an edge with those labels, and a warning. Raises WrongUse."""
    try:
        if options.data:
            goods = stock.own(options.data, options.text_column, options.label_column)
            if isinstance(goods.items["easy"][0], bytes) != (task == IMAGES):
                raise WrongUse(f"the edge takes {'images' if task == IMAGES else 'texts'}, and --data holds none")
        else:
            goods = stock.images(options.images) if task == IMAGES else stock.sentences(options.sentences)
        goods, warning = stock.known_to(goods, labels)
        weights = mix.fitting(options.mix, goods.weights, goods.name)
    except (DataMissing, BadData, mix.BadMix) as error:
        raise WrongUse(str(error)) from None
    headers = key_headers(options.key)
    if options.request_timeout_ms:
        headers["x-request-timeout-ms"] = str(options.request_timeout_ms)
    return Choice(goods, weights, headers), warning


def key_headers(key: str | None) -> dict[str, str]:
    """The headers of somebody who has that API key."""
    return {"authorization": f"Bearer {key}"} if key else {}


def served(host: str, key: str | None) -> tuple[str | None, list[str]]:
    """The task and the labels of the model at that address; None and none where it does not say. Raises WrongUse."""
    try:
        response = httpx.get(f"{host}/v1/models", headers=key_headers(key), timeout=TIMEOUT_S, trust_env=False)
    except (httpx.TransportError, httpx.InvalidURL, UnicodeEncodeError) as error:
        raise WrongUse(f"nothing answers at {host}: start it in another terminal with `make serve` ({error})") from None
    if response.status_code in (401, 403):
        what = "does not take this API key" if key else "asks for API keys"
        raise WrongUse(f"{host} {what}: set {KEY_VARIABLE} to one (`gatekeeper keys new NAME`)")
    try:
        model = response.json()["data"][0]
        task, labels = model["task"], [str(label) for label in model.get("labels") or ()]
    except (ValueError, LookupError, TypeError, AttributeError):
        return None, []
    return (task, labels) if task in (TEXTS, IMAGES) else (None, [])
