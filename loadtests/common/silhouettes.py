"""Pictures of clothes, drawn by this file: what an image edge is load-tested with where there is no data set.

28 x 28, grey on black, one silhouette of each class of Fashion-MNIST with small random variations; and figures that
are no clothes at all. A model was never trained on these: its accuracy on them says how it takes drawings.
"""

import io
import random
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw

SIDE = 28
SCALE = 4  # drawn larger and shrunk: smooth edges

Points = Sequence[tuple[float, float]]
Draw = ImageDraw.ImageDraw

# Outlines of the left half from the top middle to the bottom middle, in a square of 28; the right half is mirrored.
SHORT_SLEEVES: Points = ((11, 4), (8, 4), (3, 8), (5, 12), (8, 10), (8, 25), (14, 25))
LONG_SLEEVES: Points = ((11, 3), (8, 4), (5, 8), (3, 23), (6, 24), (8, 12), (8, 25), (14, 25))
GOWN: Points = ((12, 2), (10, 2), (10, 8), (11, 12), (9, 18), (8, 26), (14, 26))
TROUSERS: Points = ((10, 2), (9, 26), (13, 26), (13.5, 9), (14, 9))
SNEAKER: Points = ((2, 13), (6, 12), (9, 14), (14, 12), (19, 16), (25, 18), (26, 21), (2, 21))
BOOT: Points = ((8, 4), (17, 4), (17, 14), (25, 18), (26, 22), (26, 24), (8, 24))
BAG: Points = ((3, 11), (25, 11), (26, 25), (2, 25))
STRAPS: Sequence[Points] = (
    ((2, 18), (9, 19), (26, 20), (26, 22), (2, 22)),
    ((3, 10), (6, 10), (10, 19), (7, 19)),
    ((12, 19), (17, 12), (20, 13), (17, 20)),
)


def pictures(label: str, number: int, seed: int = 0) -> list[bytes]:
    """So many variations of the silhouette of a class, as PNG; the same for the same seed."""
    rng = random.Random(f"{label} {seed}")
    return [_png(_varied(_CLOTHES[label], rng)) for _ in range(number)]


def odd_pictures(number: int, seed: int = 0) -> list[bytes]:
    """Figures that are no clothes: rings, stripes, stars, noise."""
    rng = random.Random(f"odd {seed}")
    figures = (_ring, _stripes, _star, _noise)
    return [_png(_varied(figures[turn % len(figures)], rng)) for turn in range(number)]


def _varied(figure: Callable[[Draw, random.Random, int], None], rng: random.Random) -> Image.Image:
    image = Image.new("L", (SIDE * SCALE, SIDE * SCALE))
    figure(ImageDraw.Draw(image), rng, rng.randint(140, 240))
    image = image.rotate(rng.uniform(-4, 4), translate=(rng.randint(-SCALE, SCALE), rng.randint(-SCALE, SCALE)))
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _shape(draw: Draw, points: Points, grey: int) -> None:
    draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=grey)


def _mirrored(half: Points, rng: random.Random, wider: float = 1.0) -> Points:
    """Both halves, with the corners moved a little, the same on both sides."""
    left = [(14 - (14 - x) * wider + rng.uniform(-0.4, 0.4), y + rng.uniform(-0.4, 0.4)) for x, y in half]
    return [*left, *((28 - x, y) for x, y in reversed(left))]


def _t_shirt(draw: Draw, rng: random.Random, grey: int) -> None:
    _shape(draw, _mirrored(SHORT_SLEEVES, rng), grey)


def _pullover(draw: Draw, rng: random.Random, grey: int) -> None:
    _shape(draw, _mirrored(LONG_SLEEVES, rng), grey)


def _coat(draw: Draw, rng: random.Random, grey: int) -> None:
    """A longer pullover that is open in front."""
    _shape(draw, _mirrored(LONG_SLEEVES, rng, wider=1.1), grey)
    draw.line([(14 * SCALE, 4 * SCALE), (14 * SCALE, 26 * SCALE)], fill=grey // 4, width=SCALE)


def _shirt(draw: Draw, rng: random.Random, grey: int) -> None:
    """Long sleeves, a collar and buttons."""
    _shape(draw, _mirrored(LONG_SLEEVES, rng, wider=0.92), grey)
    _shape(draw, ((11, 3), (14, 8), (17, 3)), grey // 3)
    for y in range(10, 25, 3):
        draw.ellipse([13.6 * SCALE, y * SCALE, 14.6 * SCALE, (y + 1) * SCALE], fill=grey // 3)


def _dress(draw: Draw, rng: random.Random, grey: int) -> None:
    _shape(draw, _mirrored(GOWN, rng), grey)


def _trouser(draw: Draw, rng: random.Random, grey: int) -> None:
    _shape(draw, _mirrored(TROUSERS, rng), grey)


def _sneaker(draw: Draw, rng: random.Random, grey: int) -> None:
    _shape(draw, _moved(SNEAKER, rng), grey)


def _ankle_boot(draw: Draw, rng: random.Random, grey: int) -> None:
    _shape(draw, _moved(BOOT, rng), grey)


def _sandal(draw: Draw, rng: random.Random, grey: int) -> None:
    for strap in STRAPS:
        _shape(draw, _moved(strap, rng), grey)


def _bag(draw: Draw, rng: random.Random, grey: int) -> None:
    _shape(draw, _moved(BAG, rng), grey)
    draw.arc([8 * SCALE, 3 * SCALE, 20 * SCALE, 20 * SCALE], 180, 360, fill=grey, width=SCALE)


def _moved(points: Points, rng: random.Random) -> Points:
    return [(x + rng.uniform(-0.5, 0.5), y + rng.uniform(-0.5, 0.5)) for x, y in points]


def _ring(draw: Draw, rng: random.Random, grey: int) -> None:
    inset = rng.randint(2, 8) * SCALE
    draw.ellipse(
        [inset, inset, SIDE * SCALE - inset, SIDE * SCALE - inset], outline=grey, width=rng.randint(1, 5) * SCALE
    )


def _stripes(draw: Draw, rng: random.Random, grey: int) -> None:
    step = rng.randint(3, 7) * SCALE
    for x in range(0, SIDE * SCALE, step):
        draw.line([(x, 0), (x + rng.randint(0, 8) * SCALE, SIDE * SCALE)], fill=grey, width=SCALE)


def _star(draw: Draw, rng: random.Random, grey: int) -> None:
    draw.regular_polygon((14 * SCALE, 14 * SCALE, rng.randint(6, 12) * SCALE), 3, fill=grey)
    draw.regular_polygon((14 * SCALE, 14 * SCALE, rng.randint(6, 12) * SCALE), 3, rotation=180, fill=grey)


def _noise(draw: Draw, rng: random.Random, grey: int) -> None:
    for _ in range(rng.randint(40, 160)):
        x, y = rng.randrange(SIDE) * SCALE, rng.randrange(SIDE) * SCALE
        draw.rectangle([x, y, x + SCALE, y + SCALE], fill=rng.randint(20, grey))


_CLOTHES: dict[str, Callable[[Draw, random.Random, int], None]] = {
    "T-shirt/top": _t_shirt,
    "Trouser": _trouser,
    "Pullover": _pullover,
    "Dress": _dress,
    "Coat": _coat,
    "Sandal": _sandal,
    "Shirt": _shirt,
    "Sneaker": _sneaker,
    "Bag": _bag,
    "Ankle boot": _ankle_boot,
}
CLASSES = tuple(_CLOTHES)  # in Fashion-MNIST's order: the numbers of its labels
