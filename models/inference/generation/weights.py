"""The weights and the reader of a bundle that writes text: whole ones of its own, or an adapter on a frozen base."""

from pathlib import Path
from typing import Any

import torch

from models.bundle import WEIGHTS, Base, Bundle, file_sha256
from models.errors import BundleError
from models.generation import TextTask
from models.inference.generation.images import ImageTextReader, load_processor
from models.inference.generation.reader import Reader, TextReader, load_tokenizer
from models.inference.hub import locate_base, transformers_library

AUTO_CLASSES: dict[TextTask, str] = {
    "text-generation": "AutoModelForCausalLM",
    "text2text-generation": "AutoModelForSeq2SeqLM",
    "image-text-to-text": "AutoModelForImageTextToText",
}


def load_reader(bundle: Bundle) -> tuple[Reader, int]:
    """(the reader, the id of the padding). Raises BundleError."""
    manifest = bundle.manifest
    assert manifest.generation is not None  # load_bundle has checked it
    directory = bundle.directory if manifest.runtime == "transformers" else base_directory(bundle)
    if manifest.task == "image-text-to-text":
        processor = load_processor(directory)
        pad_id = padding_id(processor.tokenizer)
        return ImageTextReader(processor, manifest.generation, pad_id), pad_id
    tokenizer = load_tokenizer(directory)
    pad_id = padding_id(tokenizer)
    return TextReader(tokenizer, manifest.generation, pad_id), pad_id


def padding_id(tokenizer: Any) -> int:
    """Any token does for padding, which is masked."""
    for name in ("pad_token_id", "eos_token_id", "unk_token_id"):
        found = getattr(tokenizer, name)
        if found is not None:
            return int(found)
    return 0


def load_weights(bundle: Bundle) -> Any:
    """The model in evaluation mode, on the GPU where there is one. Raises BundleError."""
    manifest = bundle.manifest
    directory = bundle.directory if manifest.runtime == "transformers" else base_directory(bundle)
    try:
        model = open_weights(directory, manifest.task)  # type: ignore[arg-type]  # of a bundle that writes text
        if manifest.runtime == "peft":
            from peft import PeftModel  # noqa: PLC0415  a second, for those who need it

            # merged: the same function, and no slower than the base
            model = PeftModel.from_pretrained(model, str(bundle.directory)).merge_and_unload()
    except BundleError:
        raise
    except Exception as error:  # transformers, peft and safetensors each raise types of their own
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BundleError(f"{bundle.directory}: the model cannot be loaded ({why})") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval()


def open_weights(directory: Path, task: TextTask) -> Any:
    """A model in float32, from safetensors alone; no code that comes with it is run."""
    auto = getattr(transformers_library(), AUTO_CLASSES[task])
    return auto.from_pretrained(
        directory, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
    )


def base_directory(bundle: Bundle) -> Path:
    """The files of the frozen base, checked against what the bundle was made with. Raises BundleError."""
    base = bundle.manifest.base
    assert base is not None  # load_bundle has checked it
    directory = locate_base(base)
    check_base(directory, base)
    return directory


def check_base(directory: Path, base: Base) -> None:
    """Raise BundleError where a file is missing or another than the bundle was made with."""
    for file, expected in ((WEIGHTS["transformers"], base.weights_sha256), ("tokenizer.json", base.tokenizer_sha256)):
        if not (directory / file).is_file():
            raise BundleError(f"{directory / file} is missing")
        if file_sha256(directory / file) != expected:
            raise BundleError(f"{directory / file} is not the file the bundle was made with (sha256 differs)")
