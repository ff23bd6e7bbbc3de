"""Images become uint8 arrays, and one that cannot be read is told by its path."""

import gzip
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from support.loading import refusal, sizes, splits
from support.processes import ROOT
from support.tiny import jpeg, tiny_images, write_idx, write_tiny_fashion_mnist, write_tiny_images

from models.data.datasets import LabelledDataset, load_dataset
from models.data.images import ImageFile, decode
from models.errors import InputError


def test_fashion_mnist_is_one_array_a_split(tmp_path: Path) -> None:
    data = load_dataset("fashion-mnist", write_tiny_fashion_mnist(tmp_path))
    assert sizes(data) == [240, 30, 30, 80]
    assert data.task == "image-classification"
    assert data.labels[0] == "T-shirt/top"
    for split in splits(data).values():
        assert split.inputs.shape == (len(split), 28, 28)
        assert split.inputs.dtype == np.uint8
        assert split.inputs.flags.writeable  # torch.from_numpy warns of an array that is not
    assert (data.test.inputs[3] == tiny_images(3, 8, seed=1)[0]).all()
    assert data.test.labels[3] == 3


def idx_name(directory: Path, what: str) -> Path:
    return (
        directory
        / "fashion-mnist"
        / {"images": "train-images-idx3-ubyte.gz", "labels": "train-labels-idx1-ubyte.gz"}[what]
    )


def test_a_bad_idx_file_is_refused(tmp_path: Path) -> None:
    write_tiny_fashion_mnist(tmp_path)
    images, labels = idx_name(tmp_path, "images"), idx_name(tmp_path, "labels")
    good = images.read_bytes()
    bad = {
        "is damaged, or not a gzip file": [
            good[: len(good) // 2],
            good[:-4],
            b"text",
            good[:50] + b"x" * 50 + good[100:],
        ],
        "is no idx file of 3 dimensions: it begins with 00 00 08 01": [labels.read_bytes()],
        "is no idx file of 3 dimensions: it begins with": [b"", gzip.compress(b""), gzip.compress(b"\0\0\x08\x03\0")],
        "its header says (300, 28, 28), but 235199 bytes follow": [gzip.compress(gzip.decompress(good)[:-1])],
    }
    for message, contents in bad.items():
        for content in contents:
            images.write_bytes(content)
            assert message in refusal("fashion-mnist", tmp_path)
            assert str(images) in refusal("fashion-mnist", tmp_path)
    images.write_bytes(good)
    write_idx(labels, np.zeros(299, np.uint8))
    assert f"{images} has 300 images and {labels} 299 labels" in refusal("fashion-mnist", tmp_path)
    write_idx(labels, np.full(300, 10, np.uint8))
    assert "item 1 has the label 10 of 0 to 9" in refusal("fashion-mnist", tmp_path)
    labels.unlink()
    assert f"{labels} does not exist" in refusal("fashion-mnist", tmp_path)


def write_tar(directory: Path, members: dict[str, bytes]) -> Path:
    path = directory / "cifar10-jpeg" / "cifar10_jpeg.tar.xz"
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:xz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_cifar10_is_read_from_its_archive(tmp_path: Path) -> None:
    """In its order; what is no image is passed over; damage anywhere is told."""
    generator = np.random.default_rng(0)
    members = {
        f"{split}/{label}/{n:04}.jpg": jpeg(generator.integers(0, 255, (32, 32, 3), np.uint8))
        for split, count in (("test", 2), ("train", 10))
        for label in ("cat", "frog")
        for n in range(count)
    }
    path = write_tar(tmp_path, {"README.md": b"about", **members})
    data = load_dataset("cifar10", tmp_path)
    assert data.name == "CIFAR-10 (JPEG-75)"
    assert data.labels == ("cat", "frog")
    assert sizes(data) == [16, 2, 2, 4]
    assert data.test.labels == (0, 0, 1, 1)
    expected = np.asarray(PIL.Image.open(io.BytesIO(members["test/cat/0001.jpg"])))
    assert (data.test.inputs[1] == expected).all()
    assert data.train.inputs.shape == (16, 32, 32, 3)

    content = path.read_bytes()
    for cut in (0, 40, len(content) // 2, len(content) - 100, len(content) - 1):
        path.write_bytes(content[:cut])
        assert f"{path} is damaged, or not a tar.xz archive" in refusal("cifar10", tmp_path)
    name = "train/cat/0003.jpg"
    write_tar(tmp_path, members | {name: members[name][:300]})
    assert f"{path}: {name}: the image cannot be read" in refusal("cifar10", tmp_path)
    write_tar(tmp_path, members | {name: jpeg(np.zeros((16, 32, 3), np.uint8))})
    assert f"{name} is (16, 32, 3), the images before it are (32, 32, 3)" in refusal("cifar10", tmp_path)
    write_tar(tmp_path, {"README.md": b"about"})
    assert "there are no training rows" in refusal("cifar10", tmp_path)


def test_a_folder_of_images_a_class(tmp_path: Path) -> None:
    """With and without train/ and test/; files of other kinds and hidden ones are passed over."""
    directory = write_tiny_images(tmp_path / "own")
    (directory / "train" / "high" / "Thumbs.db").write_bytes(b"no image")
    (directory / "train" / "high" / "._00.png").write_bytes(b"no image")
    (directory / ".git").mkdir()
    (directory / "raw").mkdir()
    data = load_dataset(str(directory), None)
    assert data.labels == ("high", "low", "upright")
    assert sizes(data) == [72, 9, 9, 24]
    assert data.notes == (f"{directory / 'raw'} is not read: it is no split",)
    assert data.train.inputs[0].shape == (28, 28, 3)
    expected = np.asarray(PIL.Image.open(directory / "test" / "low" / "31.png"))
    assert (data.test.inputs[9] == expected).all()
    flat = load_dataset(str(write_tiny_images(tmp_path / "flat", splits=False)), None)
    assert sum(sizes(flat)) == 114
    assert min(sizes(flat)) >= 9


def test_a_class_can_be_called_train(tmp_path: Path) -> None:
    for label in ("train", "bus"):
        for n in range(8):
            save(tmp_path / label / f"{n}.png", np.full((8, 8), n, np.uint8))
    assert load_dataset(str(tmp_path), None).labels == ("bus", "train")


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path, **options)
    return path


def two_classes(directory: Path, **options: object) -> Path:
    """Twenty grey images."""
    generator = np.random.default_rng(0)
    for label in ("a", "b"):
        for n in range(10):
            save(directory / label / f"{n}.png", generator.integers(0, 255, (6, 9), np.uint8))
    return directory


def image_named(data: LabelledDataset, name: str) -> np.ndarray:
    for split in splits(data).values():
        for position, file in enumerate(split.inputs.files):
            if file.where.endswith(name):
                return split.inputs[position]
    raise AssertionError(name)


def test_images_are_grey_where_all_are(tmp_path: Path) -> None:
    directory = two_classes(tmp_path)
    assert load_dataset(str(directory), None).train.inputs[0].shape == (6, 9)
    save(directory / "a" / "colour.jpg", np.full((4, 4, 3), 200, np.uint8))
    data = load_dataset(str(directory), None)
    assert image_named(data, "a/0.png").shape == (6, 9, 3)
    assert image_named(data, "colour.jpg").shape == (4, 4, 3)


def test_every_kind_of_pixel_becomes_eight_bits(tmp_path: Path) -> None:
    """EXIF turns an image, transparency becomes white, 16 bits are scaled and not cut."""
    directory = two_classes(tmp_path)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    save(directory / "a" / "turned.jpg", np.zeros((4, 8), np.uint8), exif=exif)
    save(directory / "a" / "deep.png", np.full((2, 2), 0x80FF, np.uint16))
    clear = np.zeros((2, 2, 4), np.uint8)
    clear[0, 0] = (0, 0, 0, 255)
    save(directory / "a" / "clear.png", clear)
    palette = PIL.Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(directory / "a" / "palette.png", transparency=b"\xff\xff")
    data = load_dataset(str(directory), None)
    assert image_named(data, "turned.jpg").shape == (8, 4, 3)
    assert (image_named(data, "deep.png") == 0x80).all()
    assert image_named(data, "clear.png")[..., 0].tolist() == [[0, 255], [255, 255]]
    assert image_named(data, "palette.png")[0, 0].tolist() == [255, 0, 0]


def test_images_are_decoded_as_they_are_asked_for(tmp_path: Path) -> None:
    """A slice is still lazy, another process can have them, and a file that went away is told."""
    data = load_dataset(str(write_tiny_images(tmp_path)), None)
    some = data.test.inputs[2:4]
    assert len(some) == 2
    assert (pickle.loads(pickle.dumps(some))[0] == data.test.inputs[2]).all()
    gone = Path(data.test.inputs.files[0].where)
    gone.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        data.test.inputs[0]
    assert list(data.test.inputs[1:])[-1].shape == (28, 28, 3)


def png_header(width: int, height: int) -> bytes:
    """The beginning of a black and white PNG file of any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    pixels = zlib.compress(bytes(1000))
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_an_image_that_cannot_be_read_is_told_by_its_path(tmp_path: Path) -> None:
    directory = two_classes(tmp_path)
    png = (directory / "a" / "0.png").read_bytes()
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    bad = {
        "empty.png": (b"", "the image is empty"),
        "text.jpg": (b"not found", "is not an image of a kind that can be read"),
        "cut.png": (png[:-30], "the image cannot be read"),
        "header.png": (png[:40], "the image cannot be read: the PNG is damaged or cut short"),
        "cut.jpg": (jpeg(noise)[:900], "the image cannot be read"),
        "flipped.png": (png[:50] + bytes([png[50] ^ 0xFF]) + png[51:], "the image cannot be read"),
        "large.png": (png_header(8001, 8001), "more than 64 million pixels"),
        "larger.png": (png_header(10_000, 10_000), "more than 64 million pixels"),
        "largest.png": (png_header(60_000, 60_000), "more than 64 million pixels"),
        "folder.png": (None, None),
    }
    for name, (content, message) in bad.items():
        path = directory / "b" / name
        if content is None:
            path.mkdir()
            load_dataset(str(directory), None)
            continue
        path.write_bytes(content)
        said = refusal(directory)
        assert str(path) in said
        assert message in said
        path.unlink()


def test_a_directory_without_images_is_refused(tmp_path: Path) -> None:
    assert "has neither train.csv (.jsonl, .parquet) nor folders of images: a folder for each class" in refusal(
        tmp_path
    )
    save(tmp_path / "loose.png", np.zeros((4, 4), np.uint8))
    assert "put its images into one folder a class" in refusal(tmp_path)
    two_classes(tmp_path)
    (tmp_path / "c").mkdir()
    assert f"{tmp_path / 'c'} holds no images" in refusal(tmp_path)
    split = write_tiny_images(tmp_path / "split")
    (split / "train").rename(split / "training")
    assert "test/ but no train/" in refusal(split)


def test_equal_images_are_noted_and_hashed_by_their_pixels(tmp_path: Path) -> None:
    directory = write_tiny_images(tmp_path)
    before = load_dataset(str(directory), None)
    copied = directory / "test" / "low" / "30.png"
    copied.with_suffix(".bmp").write_bytes(b"")
    PIL.Image.open(copied).save(copied.with_suffix(".bmp"))
    copied.unlink()
    assert load_dataset(str(directory), None).content_hash == before.content_hash  # another file, the same pixels
    PIL.Image.open(before.train.inputs.files[0].where).save(copied.with_suffix(".bmp"))
    after = load_dataset(str(directory), None)
    assert after.content_hash != before.content_hash
    assert after.notes == ("1 image occurs in train and in test",)


def exif_of(entries: int) -> bytes:
    """A TIFF header and so many entries of one short, the last of them the orientation: turn by 90 degrees."""
    tags = [(0x8000 + number, 1) for number in range(entries - 1)]
    body = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in [(0x0112, 6), *tags])
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, entries) + body + bytes(4)


@pytest.mark.parametrize(("entries", "shape"), [(1, (8, 4)), (1_000, (8, 4)), (1_001, (4, 8)), (5_000, (4, 8))])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_camera_s_exif_turns_an_image_and_nothing_writes_it_anew(
    kind: str, entries: int, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow would, entry by entry in Python: 12 KB of them cost 50 ms, 786 KB a second."""

    def never(*_: object) -> bytes:
        raise AssertionError("the EXIF is written anew")

    stream = io.BytesIO()
    PIL.Image.fromarray(np.zeros((4, 8), np.uint8)).save(stream, kind, exif=exif_of(entries))
    monkeypatch.setattr(PIL.Image.Exif, "tobytes", never)
    found = decode(ImageFile("an image", lambda: io.BytesIO(stream.getvalue())), grey=True)
    assert found.shape == shape


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JFIF", ".pjpeg", ".jpg"])
def test_a_jpeg_of_any_suffix_is_read(tmp_path: Path, suffix: str) -> None:
    for place, label in enumerate(("a", "b")):
        for n in range(10):
            (tmp_path / label).mkdir(exist_ok=True)
            (tmp_path / label / f"{n}{suffix}").write_bytes(jpeg(np.full((4, 4, 3), 20 * n + 10 * place, np.uint8)))
    data = load_dataset(str(tmp_path), None)
    assert sum(sizes(data)) == 20
    assert data.notes == ()


def test_what_is_not_read_is_counted_by_kind(tmp_path: Path) -> None:
    """And what a system left there, or hides, is no image, whatever its suffix."""
    directory = two_classes(tmp_path)
    before = load_dataset(str(directory), None)
    image = (directory / "a" / "0.png").read_bytes()
    for name in (
        *(".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/._0.png", "__MACOSX/0.png", ".hidden.png"),
        *("Thumbs.db", "desktop.ini", ".DS_Store", "deep/.git/0.png"),
    ):
        path = directory / "a" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    (directory / "__MACOSX" / "a").mkdir(parents=True)
    data = load_dataset(str(directory), None)
    assert (data.content_hash, data.notes) == (before.content_hash, ())
    for name in ("1.heic", "2.HEIC", "3.avif", "more/4.heic", "notes.txt", "5", "6.zip"):
        path = directory / "b" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image)
    os.mkfifo(directory / "b" / "pipe.png")
    save(directory / "loose.png", np.zeros((4, 4), np.uint8))
    data = load_dataset(str(directory), None)
    assert data.content_hash == before.content_hash
    loose, others = data.notes
    assert loose == f"{directory}: 1 image is not read: put each into the folder of its class"
    assert others.startswith(f"{directory}: 8 files are not read, 3 .heic, 1 ")
    assert " and 1 more kinds: images are read as PNG, JPEG" in others


def test_a_class_of_which_nothing_can_be_read_says_what_it_holds(tmp_path: Path) -> None:
    directory = two_classes(tmp_path)
    (directory / "c").mkdir()
    for n in range(3):
        (directory / "c" / f"{n}.heic").write_bytes(b"\0")
    assert f"{directory / 'c'} holds no images; 3 .heic; each folder of {directory} is a class" in refusal(directory)


def test_folders_that_are_no_classes_say_what_to_give(tmp_path: Path) -> None:
    two_classes(tmp_path / "inner")
    assert refusal(tmp_path) == f"{tmp_path} holds one folder alone, inner: give {tmp_path / 'inner'} instead"
    (tmp_path / "inner" / "a").rename(tmp_path / "inner" / " ")
    assert "the name of a class is white space alone; rename the folder" in refusal(tmp_path / "inner")


def test_every_image_that_cannot_be_read_is_named_at_once(tmp_path: Path) -> None:
    directory = two_classes(tmp_path)
    png = (directory / "a" / "0.png").read_bytes()
    for n in range(3, 8):
        (directory / "a" / f"{n}.png").write_bytes(png[:-30] if n % 2 else b"text")
    said = refusal(directory)
    assert f"{directory / 'a' / '4.png'} is not an image" in said
    assert "; 4 more cannot be: " in said
    assert f"{directory / 'a' / '3.png'}" in said
    assert said.endswith(" ...; mend them, or take them out")


def test_the_name_of_a_class_is_utf_8_whatever_the_locale_is(tmp_path: Path) -> None:
    two_classes(tmp_path)
    (tmp_path / "a").rename(tmp_path / "Überweisung")
    code = "import sys; from models.data.datasets import load_dataset as load; "
    code += "print(ascii(load(sys.argv[1], None).labels))"
    for locale in ({"PYTHONUTF8": "1"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        command = [sys.executable, "-c", code, str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **locale}, capture_output=True, check=True)
        assert done.stdout.decode() == "('b', '\\xdcberweisung')\n"
