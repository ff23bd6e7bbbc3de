"""The way in: prompts and answers by the name of a set, a file or a directory."""

from pathlib import Path
from typing import Any

from models.data.datasets import HUB_ID
from models.data.prompts.examples import PromptDataset, build_prompts
from models.data.prompts.files import are_prompts, has_prompts, hub_prompts, read_prompts
from models.data.prompts.named import NAMED_PROMPTS
from models.errors import InputError


def is_prompts(data: str) -> bool:
    """Whether `data` names prompts with answers, rather than texts or images with labels. Raises InputError."""
    if data in NAMED_PROMPTS:
        return True
    path = Path(data).expanduser()
    if data and path.exists():
        return has_prompts(path)
    if not HUB_ID.fullmatch(data):
        return False
    found, _ = _hub(data)
    return are_prompts(next(iter(found.values())).column_names)


def load_prompts(data: str, data_dir: Path | None) -> PromptDataset:
    """The dataset that `data` names. data_dir holds the folders of the named sets. Raises InputError."""
    if data not in NAMED_PROMPTS:
        path = Path(data).expanduser()
        if path.exists():
            return build_prompts(read_prompts(path))
        if HUB_ID.fullmatch(data):
            return build_prompts(hub_prompts(data, *_hub(data)))
        raise InputError(
            f"{data!r} holds no prompts and answers; there is {', '.join(sorted(NAMED_PROMPTS))}; or give a file, a "
            "directory, or OWNER/NAME on the hub"
        )
    folder, read = NAMED_PROMPTS[data]
    if data_dir is None:
        raise InputError(
            f"where is {data}? Give --data-dir, the folder that holds {folder}/, or set GATEKEEPER_DATA_DIR"
        )
    if not (data_dir / folder).is_dir():
        raise InputError(f"{data_dir / folder} does not exist; --data-dir is the folder that holds {folder}/")
    return build_prompts(read(data_dir / folder))


def _hub(hub_id: str) -> tuple[Any, str]:
    from models.data.hub_datasets import encoded, open_hub  # noqa: PLC0415  a second of imports for the hub alone

    found, licence = open_hub(hub_id)
    return {split: encoded(rows) for split, rows in found.items()}, licence
