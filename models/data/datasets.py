"""Data by name, file, directory or hub id -> one labelled dataset, deterministic and hashed.

load_dataset("clinc150", data_dir)      a named dataset below data_dir
load_dataset("reviews.csv", None)       a table with text and label: .csv, .jsonl, .parquet
load_dataset("reviews/", None)          a directory with train.csv and maybe validation.csv and test.csv, or shards
load_dataset("photographs/", None)      a directory with one folder of images a class, or a table that names them
load_dataset("owner/name", None)        a dataset of the Hugging Face hub
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from models.data.image_sets import class_folders, has_images, read_folders, read_idx_pair, read_tar
from models.data.images import Image
from models.data.parquet_files import labelled_by
from models.data.records import Columns, Kind
from models.data.shards import find_tables, shard_of
from models.data.splits import Inputs, LabelledDataset, Rows, Source, Split, Task, build
from models.data.tables import TABLE_SUFFIXES, Table, is_table, kind_of, read_table, read_tables
from models.errors import InputError
from models.files import MIB, file_name, read_json
from models.printing import printable

__all__ = ["Image", "Inputs", "LabelledDataset", "Split", "Task", "load_dataset"]

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?")
MOST_JSON_BYTES = 256 * MIB
_NOT_STATED = "not stated"
SAVED = ("dataset_dict.json", "state.json")  # what the library `datasets` leaves where it saves to disk


def load_dataset(
    data: str, data_dir: Path | None, *, text_column: str = "text", label_column: str = "label"
) -> LabelledDataset:
    """The dataset that `data` names. data_dir holds one folder for each named dataset. Raises InputError."""
    columns = Columns(text_column, label_column)
    if data in _NAMED:
        return build(_named(data, data_dir))
    source = _local(data, columns)
    if source is not None:
        return build(source)
    if _looks_like_a_path(data):
        raise InputError(f"there is no file or directory {data}")
    if not HUB_ID.fullmatch(data):
        raise InputError(
            f"unknown dataset {data!r}; there is {', '.join(sorted(_NAMED))}; "
            f"or give a file ({', '.join(TABLE_SUFFIXES)}), a directory, or OWNER/NAME on the hub"
        )
    from models.data.hub_datasets import read_hub  # noqa: PLC0415  a second of imports that only the hub needs

    return build(read_hub(data, columns))


def _local(data: str, columns: Columns) -> Source | None:
    """The file or directory, where there is one of that name."""
    try:
        path = Path(data).expanduser()
        if data and path.is_dir():
            return _directory(path, columns)
        return _table(path, columns) if data and path.exists() else None
    except (OSError, RuntimeError) as error:  # RuntimeError: a ~name that is no user's
        raise InputError(f"{data} cannot be read: {error}") from error


def _looks_like_a_path(data: str) -> bool:
    """A hub id has one slash inside, and no suffix that we know of."""
    odd = data.startswith((".", "/", "~")) or data.endswith("/") or "\\" in data or data.count("/") > 1
    return odd or data.lower().endswith((*TABLE_SUFFIXES, ".json", ".txt", ".tsv", ".xlsx", ".zip", ".gz"))


def _named(name: str, data_dir: Path | None) -> Source:
    folder, read = _NAMED[name]
    if data_dir is None:
        raise InputError(
            f"where is {name}? Give --data-dir DIR (or GATEKEEPER_DATA_DIR), the folder that holds {folder}/; "
            "or, with a network, the OWNER/NAME of a dataset on the hub"
        )
    if not (data_dir / folder).is_dir():
        raise InputError(f"{data_dir / folder} does not exist; --data-dir is the folder that holds {folder}/")
    return read(data_dir / folder)


def _clinc150(directory: Path) -> Source:
    """CLINC150 (Larson et al. 2019): 150 intents; the 3,000 validation items make select and calibrate."""
    path = directory / "data_full.json"
    content = _read_json(path)
    try:
        given = {}
        for name, key in (("train", "train"), ("validation", "val"), ("test", "test")):
            texts = tuple(str(text) for text, _ in content[key])
            given[name] = Rows(texts, [str(label) for _, label in content[key]], texts)
        out_of_scope = tuple(str(text) for text, _ in content["oos_test"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not CLINC150's data_full.json ({error!r})") from error
    licence = "CC BY 3.0 (Larson et al. 2019)"
    return Source("clinc150", str(path), "text-classification", licence, given, out_of_scope=out_of_scope)


def _banking77(directory: Path) -> Source:
    """Banking77 (Casanueva et al. 2020): 77 intents, unbalanced; no validation rows."""
    files = {name: [directory / f"{name}.csv"] for name in ("train", "test")}
    given = read_tables(str(directory), files, Columns("text", "category")).given
    path = directory / "categories.json"
    categories = _read_json(path)
    if not isinstance(categories, list) or set(given["train"].labels) != {str(name) for name in categories}:
        raise InputError(f"{path} does not list the categories of {files['train'][0]}")
    return Source("banking77", str(directory), "text-classification", "CC BY 4.0 (Casanueva et al. 2020)", given)


_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def _fashion_mnist(directory: Path) -> Source:
    """Fashion-MNIST (Xiao et al. 2017): grey 28 x 28, 10 classes; no validation rows."""
    given = {
        name: read_idx_pair(
            directory / f"{prefix}-images-idx3-ubyte.gz", directory / f"{prefix}-labels-idx1-ubyte.gz", _FASHION
        )
        for name, prefix in (("train", "train"), ("test", "t10k"))
    }
    licence = "MIT (Xiao et al. 2017)"
    return Source("fashion-mnist", str(directory), "image-classification", licence, given, labels=_FASHION)


def _cifar10(directory: Path) -> Source:
    """CIFAR-10 (Krizhevsky 2009) as JPEG files of quality 75: RGB 32 x 32, 10 classes; no validation rows."""
    path = directory / "cifar10_jpeg.tar.xz"
    return Source("CIFAR-10 (JPEG-75)", str(path), "image-classification", _NOT_STATED, read_tar(path))


# name -> (its folder below the data directory, what reads it)
_NAMED: dict[str, tuple[str, Callable[[Path], Source]]] = {
    "banking77": ("banking77", _banking77),
    "cifar10": ("cifar10-jpeg", _cifar10),
    "clinc150": ("clinc150", _clinc150),
    "fashion-mnist": ("fashion-mnist", _fashion_mnist),
}


def _table(path: Path, columns: Columns) -> Source:
    if not is_table(path):
        raise InputError(f"{path} is no table: its name must end in {', '.join(TABLE_SUFFIXES)}{_instead(path)}")
    notes = []
    if (shards := shard_of(path) or 1) > 1:
        notes.append(f"{path} is one of {shards:,} files: give {path.parent} to read all of them")
    licence = _NOT_STATED
    llm = labelled_by(path) if path.suffix.lower() == ".parquet" and columns.label == Columns().label else None
    if llm is not None:  # reports and cards have it where they name the data
        licence = f"labels of the LLM {printable(llm, 100)}: an accuracy is agreement with it"
        notes.append(f"{path} holds {licence}")
    return _source(file_name(path), path, read_table(path, columns), notes, licence)


def _instead(path: Path) -> str:
    """What to do about a file of a kind that people have."""
    suffix = path.suffix.lower()
    if suffix in {".gz", ".zip", ".xz", ".bz2", ".zst", ".tar", ".tgz", ".7z"}:
        return "; unpack it first"
    if suffix in {".tsv", ".xlsx", ".xls", ".ods"}:
        return "; save it as .csv, with commas"
    return "; of .json, write one object a line into a .jsonl" if suffix == ".json" else ""


def _directory(directory: Path, columns: Columns) -> Source:
    name = file_name(directory.resolve())
    if any((directory / file).is_file() for file in SAVED):
        from models.data.hub_datasets import read_saved  # noqa: PLC0415  slow, as above

        return read_saved(name, directory, columns)
    found = find_tables(directory)
    if found.files:
        return _source(name, directory, read_tables(str(directory), found.files, columns), found.notes)
    notes: tuple[str, ...] = ()
    if found.others:
        if not has_images(directory):
            one = str(found.others[0]) if len(found.others) == 1 else f"it, such as {found.others[0]},"
            raise InputError(f"{directory} has no train.csv, .jsonl or .parquet; to read one file, give {one} itself")
        why = _why_not_read(found.others, columns)
        if why is None:
            return _source(name, directory, read_table(found.others[0], columns))
        if len(class_folders(directory)) < 2:
            raise InputError(why)
        notes = (f"{found.others[0]} is not read: its images are divided by folder",)
    given, more = read_folders(directory)
    return Source(name, str(directory), "image-classification", _NOT_STATED, given, notes=(*notes, *more))


def _why_not_read(tables: list[Path], columns: Columns) -> str | None:
    """Why the tables beside images do not tell their labels; None: there is one, and it does."""
    if len(tables) > 1:
        return f"{tables[0].parent} has images and {len(tables)} tables; give the one that names them, as {tables[0]}"
    try:
        kind = kind_of(tables[0], columns)
    except InputError as error:
        return str(error)
    if kind is Kind.FILE:
        return None
    return f"{tables[0]} holds texts, beside images: to read them, give {tables[0]} itself"


def _source(name: str, path: Path, table: Table, notes: Sequence[str] = (), licence: str = _NOT_STATED) -> Source:
    return Source(
        name,
        str(path),
        table.task,
        licence,
        table.given,
        labels=table.labels,
        notes=(*notes, *table.notes),
    )


def _read_json(path: Path) -> Any:
    try:
        return read_json(path, MOST_JSON_BYTES)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; --data-dir is the folder that holds {path.parent.name}/") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path} cannot be read: {reason}") from error
