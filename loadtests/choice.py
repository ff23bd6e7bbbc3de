"""What a run sends, from its options and from what the edge serves; and what is wrong with them, in one line."""

from argparse import ArgumentTypeError, Namespace
from dataclasses import dataclass
from typing import Any

import httpx

from loadtests import mix, stock
from loadtests.datasets import DataMissing
from loadtests.options import between

TEXTS, IMAGES = "text-classification", "image-classification"
KEY_VARIABLE = "GATEKEEPER_LOAD_KEY"
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


def add_arguments(parser: Any) -> None:
    """The options of every run, to Locust's parser or to our own."""
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


def mix_type(text: str) -> str:
    """The type of --mix: the text itself, if it is one."""
    try:
        if text:
            mix.parse(text)
    except mix.BadMix as bad:
        raise ArgumentTypeError(str(bad)) from None
    return text


def choose(task: str, options: Namespace) -> Choice:
    """What users of that task send. Raises WrongUse."""
    try:
        goods = stock.images(options.images) if task == IMAGES else stock.sentences(options.sentences)
        weights = mix.fitting(options.mix, goods.weights, goods.name)
    except (DataMissing, mix.BadMix) as error:
        raise WrongUse(str(error)) from None
    headers = key_headers(options.key)
    if options.request_timeout_ms:
        headers["x-request-timeout-ms"] = str(options.request_timeout_ms)
    return Choice(goods, weights, headers)


def key_headers(key: str | None) -> dict[str, str]:
    """The headers of somebody who has that API key."""
    return {"authorization": f"Bearer {key}"} if key else {}


def served_task(host: str, key: str | None) -> str | None:
    """The task of the model at that address; None where it does not say. Raises WrongUse."""
    try:
        response = httpx.get(f"{host}/v1/models", headers=key_headers(key), timeout=TIMEOUT_S, trust_env=False)
    except (httpx.TransportError, httpx.InvalidURL, UnicodeEncodeError) as error:
        raise WrongUse(f"nothing answers at {host}: start it in another terminal with `make serve` ({error})") from None
    if response.status_code in (401, 403):
        what = "does not take this API key" if key else "asks for API keys"
        raise WrongUse(f"{host} {what}: set {KEY_VARIABLE} to one (`gatekeeper keys new NAME`)")
    try:
        task = response.json()["data"][0]["task"]
    except (ValueError, LookupError, TypeError):
        return None
    return task if task in (TEXTS, IMAGES) else None
