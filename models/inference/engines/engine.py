"""The interface of an engine: a batch of items to logits as NumPy. What becomes of them is no engine's matter."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.bundle import Bundle
from models.errors import BundleError
from models.files import MIB, read_json

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Engine:
    """logits: items, texts or uint8 images, to logits (N, C). Not for two threads at once.

    prepare: the part of the work on an item that any thread may do before; logits takes items with and without it, and
    gives the same. For images, arrays or Pillow's, it is what makes them small; for texts there is none.

    batch_free: an item's logits are the same numbers in every batch. Where they are not, confidences are rounded.
    """

    logits: Callable[[Sequence[Any]], Logits]
    prepare: Callable[[Any], Any] | None = None
    batch_free: bool = False


class EngineKind(Protocol):
    """A module beside this one."""

    def takes(self, bundle: Bundle) -> bool:
        """Whether this engine runs the bundle's model. Raises BundleError for a file that cannot be read."""

    def load(self, bundle: Bundle) -> Engine:
        """The engine, ready to run. Raises BundleError, and what its libraries raise."""


def from_torch(forward: Callable[[Sequence[Any]], Tensor]) -> Callable[[Sequence[Any]], Logits]:
    """The logits of a torch model as NumPy, without a copy."""

    def logits(items: Sequence[Any]) -> Logits:
        if torch.is_inference_mode_enabled():  # to enter it again would cost a text of its own a tenth of its time
            found: Logits = forward(items).numpy()
            return found
        with torch.inference_mode():
            return logits(items)

    return logits


def config_of(directory: Path) -> dict[str, Any]:
    """What config.json says. Raises BundleError."""
    path = directory / "config.json"
    try:
        config = read_json(path, MIB)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise BundleError(f"{path} is no JSON object")
    return config


def check_outputs(bundle: Bundle, outputs: int) -> None:
    """Raise BundleError where the model has not one output for each label."""
    labels = len(bundle.manifest.labels)
    if outputs != labels:
        raise BundleError(f"{bundle.directory / 'config.json'}: {outputs} outputs for {labels} labels")


def padding_of(config: dict[str, Any]) -> tuple[int, int]:
    """(id of the padding, id in the place of a text without a single token)."""
    pad_id = config.get("pad_token_id") or 0
    return pad_id, config.get("unk_token_id") or pad_id
