"""The way in: prompts and answers by the name of a set, a file or a directory."""

from pathlib import Path

from models.data.prompts.examples import PromptDataset, build_prompts
from models.data.prompts.files import has_prompts, read_prompts
from models.data.prompts.named import NAMED_PROMPTS
from models.errors import InputError


def is_prompts(data: str) -> bool:
    """Whether `data` names prompts with answers, rather than texts or images with labels. Raises InputError."""
    if data in NAMED_PROMPTS:
        return True
    path = Path(data).expanduser()
    return bool(data) and path.exists() and has_prompts(path)


def load_prompts(data: str, data_dir: Path | None) -> PromptDataset:
    """The dataset that `data` names. data_dir holds the folders of the named sets. Raises InputError."""
    if data not in NAMED_PROMPTS:
        return build_prompts(read_prompts(Path(data).expanduser()))
    folder, read = NAMED_PROMPTS[data]
    if data_dir is None:
        raise InputError(
            f"where is {data}? Give --data-dir, the folder that holds {folder}/, or set GATEKEEPER_DATA_DIR"
        )
    if not (data_dir / folder).is_dir():
        raise InputError(f"{data_dir / folder} does not exist; --data-dir is the folder that holds {folder}/")
    return build_prompts(read(data_dir / folder))
