"""Small models that start from nothing, of transformers' own classes: for text sets that are simple enough.

Their tokens are learned from the answers: what is written is what counts, and a prompt is mostly read by the byte.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GemmaConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from models.data.prompts.examples import PromptDataset
from models.errors import InputError
from models.generation import TextTask

TINY_DECODER, TINY_T5, TINY_PALIGEMMA = "tiny-decoder", "tiny-t5", "tiny-paligemma"
VOCABULARY = 512
PAD, BEGIN, END, IMAGE = "<pad>", "<begin>", "<end>", "<image>"
SIDE, PATCH = 64, 16  # of the images and of their squares


@dataclass(frozen=True)
class Net:
    """encoder: its tokenizer, or its processor with one."""

    model: Any
    encoder: Any
    task: TextTask


def start_net(name: str, data: PromptDataset) -> Net:
    """A net with random weights, as torch's seed has them. Raises InputError where it does not fit the data."""
    task, start = NETS[name]
    if (data.task == "image-text-to-text") != (task == "image-text-to-text"):
        images = data.task == "image-text-to-text"
        fitting = [net for net, (does, _) in NETS.items() if (does == "image-text-to-text") == images]
        raise InputError(f"--model {name} does {task}, and {data.name} is {data.task}: try {', '.join(fitting)}")
    tokenizer = learned_tokenizer(row.answers[0] for row in data.train)
    model, encoder = start(tokenizer)
    return Net(model, encoder, task)


def learned_tokenizer(answers: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most VOCABULARY tokens, its merges those of the answers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(answers, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BEGIN, eos_token=END)


def _decoder(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, Any]:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        **_ends(tokenizer),
    )
    return LlamaForCausalLM(config), tokenizer


def _t5(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, Any]:
    start: dict[str, Any] = {"decoder_start_token_id": tokenizer.pad_token_id}
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=96,
        d_kv=24,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        **start,
        **_ends(tokenizer),
    )
    return T5ForConditionalGeneration(config), tokenizer


def _paligemma(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, Any]:
    images: Any = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    images.image_seq_length = (SIDE // PATCH) ** 2
    processor = PaliGemmaProcessor(images, tokenizer)
    vision = SiglipVisionConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = GemmaConfig(
        vocab_size=len(processor.tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=24,
        max_position_embeddings=2048,
        **_ends(tokenizer),
    )
    config = PaliGemmaConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        projection_dim=96,
        image_token_index=processor.image_token_id,
        **_ends(tokenizer),
    )
    return PaliGemmaForConditionalGeneration(config), processor


def _ends(tokenizer: Any) -> dict[str, Any]:
    return {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


NETS: dict[str, tuple[TextTask, Callable[[PreTrainedTokenizerFast], tuple[Any, Any]]]] = {
    TINY_DECODER: ("text-generation", _decoder),
    TINY_T5: ("text2text-generation", _t5),
    TINY_PALIGEMMA: ("image-text-to-text", _paligemma),
}
