"""The weights and the reader of a bundle that writes text: whole ones of its own, or an adapter on a frozen base."""

import warnings
from pathlib import Path
from typing import Any

import torch

from models.bundle import Bundle
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
    directory = files_of(bundle)
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
    directory = files_of(bundle)
    try:
        model = open_weights(directory, manifest.task)  # type: ignore[arg-type]  # of a bundle that writes text
        if manifest.runtime == "peft":
            model = _merged(model, bundle.directory)
    except BundleError:
        raise
    except Exception as error:  # transformers, peft and safetensors each raise types of their own
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BundleError(f"{bundle.directory}: the model cannot be loaded ({why})") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval()


def _merged(model: Any, adapter: Path) -> Any:
    """The base with the adapter in its weights: the same function, and no slower than the base."""
    from peft import PeftModel  # noqa: PLC0415  a second, for those who need it

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft's business
        return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()


def open_weights(directory: Path, task: TextTask) -> Any:
    """A model in float32, from safetensors alone; no code that comes with it is run."""
    auto = getattr(transformers_library(), AUTO_CLASSES[task])
    return auto.from_pretrained(
        directory, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
    )


def files_of(bundle: Bundle) -> Path:
    """Where its tokenizer and whole weights lie: the bundle, or the frozen base, checked. Raises BundleError."""
    base = bundle.manifest.base
    return bundle.directory if base is None else locate_base(base)
