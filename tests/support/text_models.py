"""Tiny models that write text, of transformers' own classes, with random weights: directories as a user has them."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
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

SPECIAL = ("<pad>", "<bos>", "<end>", "<unk>", "<image>")
WORDS = (
    *("what", "is", "the", "colour", "of", "a", "red", "green", "blue"),
    *("circle", "square", "yes", "no", "one", "two"),
)
CHAT = (
    "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def word_tokenizer(*, chat: bool = False) -> PreTrainedTokenizerFast:
    """A token for each word of WORDS; any other is <unk>."""
    vocabulary = {word: place for place, word in enumerate((*SPECIAL, *WORDS, "user", "assistant", "system"))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<end>", unk_token="<unk>"
    )
    if chat:
        fast.chat_template = CHAT
    return fast


def write_tiny_llama(
    directory: Path, *, chat: bool = False, seed: int = 0, vocabulary: int | None = None, positions: int = 64
) -> Path:
    """Two layers; vocabulary: more entries of the output than there are tokens."""
    tokenizer = word_tokenizer(chat=chat)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary or len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        initializer_range=0.5,
        **_ends(),
    )
    return _saved(LlamaForCausalLM(config), tokenizer, directory)


def write_tiny_t5(directory: Path, seed: int = 0) -> Path:
    """Two layers each way."""
    tokenizer = word_tokenizer()
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        initializer_factor=2.0,
        **{**_ends(), "decoder_start_token_id": 0},
    )
    return _saved(T5ForConditionalGeneration(config), tokenizer, directory)


def write_tiny_paligemma(directory: Path, seed: int = 0) -> Path:
    """Four patches of a 16 x 16 image, two layers."""
    images: Any = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    images.image_seq_length = 4
    processor = PaliGemmaProcessor(images, word_tokenizer())
    torch.manual_seed(seed)
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            image_size=16,
            patch_size=8,
        ).to_dict(),
        text_config=GemmaConfig(
            vocab_size=len(processor.tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=8,
            **_ends(),
        ).to_dict(),
        projection_dim=32,
        image_token_index=processor.image_token_id,
        **_ends(),
    )
    return _saved(PaliGemmaForConditionalGeneration(config), processor, directory)


def _ends() -> dict[str, Any]:
    return {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _saved(model: Any, encoder: Any, directory: Path) -> Path:
    model.save_pretrained(directory)
    encoder.save_pretrained(directory)
    return directory
