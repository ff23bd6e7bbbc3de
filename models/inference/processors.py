"""A bundle's image processor: our own arithmetic where it does the same, else transformers'."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from models.inference.hub import transformers_library
from models.inference.pixels import PixelEncoder


class LibraryEncoder:
    """transformers' own processor, one image at a time: it works through a batch that way too."""

    def __init__(self, directory: Path) -> None:
        self._processor = transformers_library().AutoImageProcessor.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )

    def __call__(self, images: Sequence[NDArray[np.uint8] | Tensor]) -> Tensor:
        """uint8 images, or what `fitted` made of them -> pixel values (N, C, H, W)."""
        return torch.stack([image if isinstance(image, Tensor) else self.fitted(image) for image in images])

    def fitted(self, image: NDArray[np.uint8] | Image) -> Tensor:
        """The pixel values (C, H, W) of one image, grey or RGB."""
        array = np.asarray(image)
        colour = array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=-1)
        return cast("Tensor", self._processor(colour, return_tensors="pt")["pixel_values"][0])


def load_pixel_encoder(directory: Path) -> PixelEncoder | LibraryEncoder:
    """uint8 images -> pixel values (N, C, H, W)."""
    return PixelEncoder.load(directory) or LibraryEncoder(directory)
