"""Images to pixel values as a ViTImageProcessor does it, from its own file, without transformers.

transformers' processor costs 150 us an image, most of it not arithmetic; this costs a few. Equal to 1e-6, a test
holds the two together. Other processors are left to transformers.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

PROCESSOR = "preprocessor_config.json"
KIND = "ViTImageProcessor"


@dataclass(frozen=True)
class PixelEncoder:
    """Resize (bilinear), scale to [0, 1], normalise. One mean and deviation: grey; three: RGB."""

    height: int
    width: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """uint8 images (H, W) or (H, W, 3) of any size -> (N, C, height, width) float32."""
        stacked = np.stack([self.fitted(image) for image in images])
        pixels = torch.from_numpy(stacked if stacked.ndim == 4 else stacked[..., None]).float() / 255.0
        return ((pixels - torch.tensor(self.mean)) / torch.tensor(self.deviation)).permute(0, 3, 1, 2).contiguous()

    def fitted(self, image: NDArray[np.uint8] | Image.Image) -> NDArray[np.uint8]:
        """One image at the model's size and in its colours; an array that is so already comes back as it is."""
        mode = "L" if len(self.mean) == 1 else "RGB"
        if not isinstance(image, Image.Image):
            if image.shape[:2] == (self.height, self.width) and (image.ndim == 2) == (mode == "L"):
                return image
            image = Image.fromarray(image)
        if image.mode != mode:
            image = image.convert(mode)
        return np.asarray(image.resize((self.width, self.height), Image.Resampling.BILINEAR))

    def save(self, directory: Path) -> None:
        """Write preprocessor_config.json, which transformers' AutoImageProcessor reads too."""
        document = {
            "image_processor_type": KIND,
            "do_resize": True,
            "size": {"height": self.height, "width": self.width},
            "resample": 2,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": self.mean,
            "image_std": self.deviation,
            "do_convert_rgb": len(self.mean) == 3,
        }
        (directory / PROCESSOR).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> "PixelEncoder | None":
        """None where the processor is of another kind, or does something else besides."""
        config: dict[str, Any] = json.loads((directory / PROCESSOR).read_bytes())
        size = config.get("size")
        if not isinstance(size, dict):
            return None
        plain = (
            config.get("image_processor_type") == KIND
            and all(config.get(step, True) for step in ("do_resize", "do_rescale", "do_normalize"))
            and {"height", "width"} == size.keys()
            and config.get("resample", 2) == 2
            and abs(config.get("rescale_factor", 1 / 255) - 1 / 255) < 1e-9
            and not any(config.get(step) for step in ("do_center_crop", "do_pad"))
        )
        if not plain:
            return None
        mean, deviation = (tuple(config.get(key, (0.5,) * 3)) for key in ("image_mean", "image_std"))
        return cls(size["height"], size["width"], mean, deviation)

    @classmethod
    def fitted_to(cls, images: Sequence[NDArray[np.uint8]], size: tuple[int, int]) -> "PixelEncoder":
        """Mean and deviation of these images (a few thousand of them), to four digits."""
        chosen = [images[position] for position in range(0, len(images), max(1, len(images) // 5000))]
        grey = all(image.ndim == 2 for image in chosen)
        plain = cls(*size, (0.0,) * (1 if grey else 3), (1.0,) * (1 if grey else 3))
        pixels = plain(chosen).double()
        mean, deviation = pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3)).clamp(min=1e-3)
        return cls(*size, *(tuple(round(value, 4) for value in values.tolist()) for values in (mean, deviation)))
