"""Hold a running cascade against the offline evaluation, item by item, over HTTP.

    gatekeeper evaluate BUNDLE --large LARGE --data clinc150 --data-dir DIR --endpoint http://127.0.0.1:8000

Sends the test split with a per-request threshold (no admin token needed, the policy stays as it is; where the edge asks
for API keys, one with the scope `override`). Images travel as the files that they are, or as PNG, which loses nothing.
"""

import asyncio
import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Annotated

import httpx
import numpy as np
import PIL.Image
from pydantic import BaseModel, Field, FiniteFloat

from models.bundle import Bundle
from models.data.datasets import LabelledDataset
from models.data.images import Image, ImageFiles
from models.errors import InputError
from models.evaluation.edge_client import call, edge_client
from models.evaluation.results import Evaluation
from models.numbers.predictions import Predictions
from models.operating_points import deferred, joint_accuracy

NEAR = 1e-5  # closer to the threshold than this, the order of summation in a batch may decide
BATCH_BYTES = 8 * 1024 * 1024  # of images in one request; a service takes 32 MiB unless it was told otherwise


class _Output(BaseModel):
    label: str
    confidence: FiniteFloat
    decision: str


class _Answer(BaseModel):
    outputs: list[_Output]


class _Served(BaseModel):
    id: str
    gate_digest: str | None = None


class _Models(BaseModel):
    data: Annotated[list[_Served], Field(min_length=1)]


@dataclass(frozen=True)
class Comparison:
    """One threshold, both sides. `different` counts items decided differently although not near the threshold."""

    threshold: float
    offline_deferral_ratio: float
    online_deferral_ratio: float
    offline_joint_accuracy: float
    online_joint_accuracy: float
    different: int
    near: int
    degraded: int
    largest_confidence_gap: float


def compare_endpoint(
    url: str,
    bundle: Bundle,
    data: LabelledDataset,
    offline: Evaluation,
    thresholds: Sequence[float],
    progress: Callable[[int], None],
    batch_size: int = 50,
    key: str | None = None,
) -> list[Comparison]:
    """One Comparison a threshold. Raises InputError when the endpoint is not this cascade or does not answer."""
    if offline.predictions.large_correct is None:
        raise InputError("--endpoint needs --large: the other side of the comparison is the whole cascade")
    return asyncio.run(_compare_all(url, bundle, data, offline.predictions, thresholds, progress, batch_size, key))


async def _compare_all(
    url: str,
    bundle: Bundle,
    data: LabelledDataset,
    offline: Predictions,
    thresholds: Sequence[float],
    progress: Callable[[int], None],
    batch_size: int,
    key: str | None,
) -> list[Comparison]:
    comparisons = []
    async with edge_client(url, "--endpoint", key) as client:
        await _check_model(client, bundle)
        for threshold in thresholds:
            outputs: list[_Output] = []
            for batch in _batches(data, batch_size):
                body = {"inputs": batch, "parameters": {"threshold": threshold}}
                answer = await call(client, "POST", "/v1/classify", body, _Answer)
                if len(answer.outputs) != len(batch):
                    raise InputError(
                        f"{client.base_url} answered {len(answer.outputs)} outputs to {len(batch)} inputs: "
                        "it is no Gatekeeper edge"
                    )
                outputs += answer.outputs
                progress(len(batch))
            comparisons.append(_compare(outputs, data, offline, threshold))
    return comparisons


def _batches(data: LabelledDataset, batch_size: int) -> Iterator[list[str] | list[dict[str, str]]]:
    """The inputs as they travel, up to batch_size and, of images, up to BATCH_BYTES in one request."""
    inputs = data.test.inputs
    if data.task == "text-classification":
        for start in range(0, len(inputs), batch_size):
            yield list(inputs[start : start + batch_size])
        return
    batch: list[dict[str, str]] = []
    size = 0
    for position in range(len(inputs)):
        encoded = base64.b64encode(encoded_file(inputs, position)).decode("ascii")
        if batch and (len(batch) == batch_size or size + len(encoded) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append({"image": encoded})
        size += len(encoded)
    yield batch


def encoded_file(images: Sequence[Image], position: int) -> bytes:
    """The image as the file that it is, or as PNG."""
    if isinstance(images, ImageFiles):
        with images.files[position].open() as file:
            return file.read()
    buffer = BytesIO()
    PIL.Image.fromarray(images[position]).save(buffer, "PNG")
    return buffer.getvalue()


async def _check_model(client: httpx.AsyncClient, bundle: Bundle) -> None:
    served = (await call(client, "GET", "/v1/models", None, _Models)).data[0]
    if served.gate_digest != bundle.gate_digest:
        raise InputError(f"{client.base_url} serves {served.id} with another gate digest than {bundle.directory}")


def _compare(outputs: list[_Output], data: LabelledDataset, offline: Predictions, threshold: float) -> Comparison:
    assert offline.large_correct is not None
    expected = [data.labels[label] for label in data.test.labels]
    online_deferred = np.array([output.decision != "accepted" for output in outputs])
    offline_deferred = deferred(offline.confidence, threshold)
    near = np.abs(offline.confidence - threshold) <= NEAR
    online_correct = np.array([output.label == label for output, label in zip(outputs, expected, strict=True)])
    online_confidence = np.array([output.confidence for output in outputs])
    return Comparison(
        threshold=threshold,
        offline_deferral_ratio=float(offline_deferred.mean()),
        online_deferral_ratio=float(online_deferred.mean()),
        offline_joint_accuracy=joint_accuracy(
            threshold, offline.confidence, offline.small_correct, offline.large_correct
        ),
        online_joint_accuracy=float(online_correct.mean()),
        different=int(((online_deferred != offline_deferred) & ~near).sum()),
        near=int(near.sum()),
        degraded=sum(output.decision == "degraded" for output in outputs),
        largest_confidence_gap=float(np.abs(online_confidence - offline.confidence).max()),
    )
