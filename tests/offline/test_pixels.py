"""Our arithmetic from images to pixel values, held against transformers' processor."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoImageProcessor

from models.inference.architectures import SmallCNN, SmallCNNConfig
from models.inference.pixels import PROCESSOR, PixelEncoder
from models.inference.processors import LibraryEncoder, load_pixel_encoder

NAMES = {"id2label": dict(enumerate("0123456789")), "label2id": {str(index): index for index in range(10)}}


@pytest.mark.parametrize(("height", "width", "size"), [(28, 28, (28, 28)), (40, 31, (28, 28)), (9, 64, (32, 20))])
@pytest.mark.parametrize("grey", [True, False])
def test_pixel_values_are_those_of_the_library(
    tmp_path: Path, height: int, width: int, size: tuple[int, int], grey: bool
) -> None:
    shape = (5, height, width) if grey else (5, height, width, 3)
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    encoder = PixelEncoder(*size, (0.28,) if grey else (0.4, 0.5, 0.6), (0.35,) if grey else (0.2, 0.3, 0.25))
    encoder.save(tmp_path)
    assert PixelEncoder.load(tmp_path) == encoder
    library = AutoImageProcessor.from_pretrained(tmp_path)
    expected = library([image[..., None] if grey else image for image in images], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(encoder(images), expected, atol=2e-6, rtol=1e-5)


def test_an_image_of_the_other_kind_is_converted() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    grey = colour[..., 0]
    assert PixelEncoder(4, 4, (0.5,), (0.5,))([colour, grey]).shape == (2, 1, 4, 4)
    assert PixelEncoder(4, 4, (0.5,) * 3, (0.5,) * 3)([colour, grey]).shape == (2, 3, 4, 4)


@pytest.mark.parametrize(
    "change",
    [
        {"image_processor_type": "ConvNextImageProcessor"},
        {"size": {"shortest_edge": 28}},
        {"size": 28},
        {"do_center_crop": True},
        {"do_normalize": False},
        {"resample": 3},
        {"rescale_factor": 1.0},
    ],
)
def test_what_it_does_not_do_is_left_to_the_library(tmp_path: Path, change: dict[str, object]) -> None:
    PixelEncoder(4, 4, (0.5,), (0.5,)).save(tmp_path)
    config = json.loads((tmp_path / PROCESSOR).read_text())
    (tmp_path / PROCESSOR).write_text(json.dumps(config | change))
    assert PixelEncoder.load(tmp_path) is None


@pytest.mark.parametrize("change", [{}, {"resample": 3}])
def test_a_prepared_image_gives_the_same_pixel_values(tmp_path: Path, change: dict[str, object]) -> None:
    """By our own arithmetic and by the library's, of arrays and of Pillow's images."""
    PixelEncoder(8, 6, (0.5,) * 3, (0.5,) * 3).save(tmp_path)
    config = json.loads((tmp_path / PROCESSOR).read_text())
    (tmp_path / PROCESSOR).write_text(json.dumps(config | change))
    encoder = load_pixel_encoder(tmp_path)
    assert isinstance(encoder, LibraryEncoder if change else PixelEncoder)
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, shape).astype(np.uint8) for shape in ((20, 30, 3), (8, 6), (8, 6, 3), (5, 9))]
    expected = encoder(images)
    assert expected.shape == (4, 3, 8, 6)
    assert torch.equal(encoder([encoder.fitted(image) for image in images]), expected)
    assert torch.equal(encoder([encoder.fitted(PIL.Image.fromarray(image)) for image in images]), expected)


def test_mean_and_deviation_are_those_of_the_images() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3)).astype(np.uint8)
    encoder = PixelEncoder.fitted_to(images, (8, 8))
    pixels = encoder(images)
    assert pixels.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    assert (pixels.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-2
    blank = PixelEncoder.fitted_to(np.zeros((3, 8, 8), np.uint8), (8, 8))
    assert torch.isfinite(blank(np.zeros((1, 8, 8), np.uint8))).all()


def test_the_paper_s_small_cnn_has_its_number_of_parameters() -> None:
    net = SmallCNN(SmallCNNConfig(**NAMES))
    assert sum(parameter.numel() for parameter in net.parameters()) == 136_970


def test_jitter_moves_and_mirrors_and_evaluation_does_neither() -> None:
    torch.manual_seed(0)
    net = SmallCNN(SmallCNNConfig(image_size=(12, 12), num_channels=1, shift=2, flip=True, **NAMES))
    seen = []
    net.features.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    image = torch.zeros(512, 1, 12, 12)
    image[:, :, 5, 3] = 1.0
    net.train()(image)
    places = {tuple(place.tolist()) for place in seen[0].squeeze(1).nonzero()[:, 1:]}
    rows, columns = {row for row, _ in places}, {column for _, column in places}
    assert rows == {3, 4, 5, 6, 7}
    assert columns == {1, 2, 3, 4, 5} | {6, 7, 8, 9, 10}
    assert (seen[0].sum(dim=(1, 2, 3)) == 1).all()
    net.eval()(image)
    assert torch.equal(seen[1], image)
