"""Tiny random transformers of many kinds, one layer of 32, with the kind of tokenizer that each is published with."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as t
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.normalizers import NFKC, Lowercase

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
SIGNS = "<>/|[](){}.,;:!?'\"-_#$%&*+=@~^`\\"
PAD, UNKNOWN, FIRST, LAST, MASK = 1, 3, 0, 2, 4  # ids of the tokens with a meaning, whatever they are called
SIZE = 512  # rows of every embedding


def _special(tokenizer: Tokenizer, tokens: list[str], template: str) -> Tokenizer:
    tokenizer.add_special_tokens(tokens)
    if template:
        numbers = [(token, tokens.index(token)) for token in tokens if token in template.split()]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=numbers)
    return tokenizer


def word_pieces() -> Tokenizer:
    """As BERT's: words, then letters; [CLS] and [SEP] around a text."""
    specials = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
    pieces = [*specials, *LETTERS, *SIGNS, *(f"##{letter}" for letter in LETTERS)]
    tokenizer = Tokenizer(models.WordPiece({piece: place for place, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _special(tokenizer, specials, "[CLS] $A [SEP]")


def byte_pairs(template: str = "<s> $A </s>") -> Tokenizer:
    """As RoBERTa's and GPT-2's: bytes, none unknown."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({piece: place for place, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _special(tokenizer, specials, template)


def sentence_pieces(template: str = "$A </s>") -> Tokenizer:
    """As T5's and XLM-R's: what a token with a meaning is called is one of the vocabulary's own pieces, too."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces = [*specials, "▁", *LETTERS, *SIGNS]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(place)) for place, piece in enumerate(pieces)], UNKNOWN))
    tokenizer.normalizer = NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return _special(tokenizer, specials, template)


@dataclass(frozen=True)
class Kind:
    """How to make one. head: without it, the base model as it is before anybody fine-tunes it."""

    config: Callable[..., t.PreTrainedConfig]
    tokenizer: Callable[[], Tokenizer] | None = None  # None: it is an image model
    processor: Callable[[], Any] | None = None


def _config(name: str, **fixed: Any) -> Callable[..., t.PreTrainedConfig]:
    return lambda **more: getattr(t, f"{name}Config")(**(fixed | more))


IDS: dict[str, Any] = {"vocab_size": SIZE, "pad_token_id": PAD, "bos_token_id": FIRST, "eos_token_id": LAST}
NO_PAD: dict[str, Any] = IDS | {"pad_token_id": None}
LAYER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
HEADS = {"num_key_value_heads": 1, "head_dim": 16}
D_MODEL = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
D_MODEL |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": PAD}
IMAGE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
SIDE = {"image_size": 32, "patch_size": 8}


def _vit() -> Any:
    return t.ViTImageProcessor(size={"height": 32, "width": 32})


def _convnext() -> Any:
    return t.ConvNextImageProcessor(size={"shortest_edge": 32})


def _mobilenet() -> Any:
    return t.MobileNetV2ImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})


KINDS: dict[str, Kind] = {
    # encoders
    "bert": Kind(_config("Bert", **IDS, **LAYER), word_pieces),
    "distilbert": Kind(
        _config("DistilBert", **IDS, dim=32, n_layers=1, n_heads=2, hidden_dim=64, max_position_embeddings=64),
        word_pieces,
    ),
    "roberta": Kind(_config("Roberta", **IDS, **LAYER), byte_pairs),
    "xlm-roberta": Kind(_config("XLMRoberta", **IDS, **LAYER), lambda: sentence_pieces("<s> $A </s>")),
    "albert": Kind(_config("Albert", **IDS, **LAYER, embedding_size=16), lambda: sentence_pieces("<s> $A </s>")),
    "electra": Kind(_config("Electra", **IDS, **LAYER, embedding_size=16), word_pieces),
    "deberta-v2": Kind(
        _config("DebertaV2", **IDS, **LAYER, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8),
        lambda: sentence_pieces("<s> $A </s>"),
    ),
    "mpnet": Kind(_config("MPNet", **IDS, **LAYER), word_pieces),
    "modernbert": Kind(
        _config("ModernBert", **IDS, **LAYER, cls_token_id=FIRST, sep_token_id=LAST, local_attention=8), byte_pairs
    ),
    "longformer": Kind(_config("Longformer", **IDS, **LAYER, attention_window=[8]), byte_pairs),
    "funnel": Kind(
        _config("Funnel", **IDS, block_sizes=[1], num_decoder_layers=1, d_model=32, n_head=2, d_head=16, d_inner=64),
        word_pieces,
    ),
    "data2vec-text": Kind(_config("Data2VecText", **IDS, **LAYER), byte_pairs),
    # decoders
    "gpt2": Kind(_config("GPT2", **NO_PAD, n_embd=32, n_layer=1, n_head=2, n_positions=64), lambda: byte_pairs("")),
    "llama": Kind(
        _config("Llama", **LAYER, **HEADS, **(NO_PAD | {"eos_token_id": [LAST, UNKNOWN]})),
        lambda: byte_pairs("<s> $A"),
    ),
    "qwen2": Kind(_config("Qwen2", **NO_PAD, **LAYER, num_key_value_heads=1), lambda: byte_pairs("")),
    "mistral": Kind(_config("Mistral", **NO_PAD, **LAYER, **HEADS), lambda: sentence_pieces("<s> $A")),
    "opt": Kind(
        _config("OPT", **IDS, ffn_dim=64, word_embed_proj_dim=32, **(LAYER | {"intermediate_size": 64})),
        lambda: byte_pairs("</s> $A"),
    ),
    "bloom": Kind(_config("Bloom", **IDS, hidden_size=32, n_layer=1, n_head=2), lambda: byte_pairs("")),
    # both
    "bart": Kind(_config("Bart", **IDS, **D_MODEL, decoder_start_token_id=LAST, forced_eos_token_id=None), byte_pairs),
    "t5": Kind(_config("T5", **IDS, **T5), sentence_pieces),
    # images
    "vit": Kind(_config("ViT", **IMAGE, **SIDE), None, _vit),
    "deit": Kind(_config("DeiT", **IMAGE, **SIDE), None, _vit),
    "swin": Kind(
        _config("Swin", image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[1, 2], window_size=4),
        None,
        _vit,
    ),
    "resnet": Kind(_config("ResNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]), None, _convnext),
    "convnext": Kind(_config("ConvNext", hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1]), None, _convnext),
    "mobilenet-v2": Kind(_config("MobileNetV2", depth_multiplier=0.35, image_size=32), None, _mobilenet),
}


def write_model(kind: str, directory: Path, labels: list[str] | None = None, **changes: Any) -> Path:
    """A base model as it is published, or, with labels, a fine-tuned classifier. Returns its directory."""
    made = KINDS[kind]
    torch.manual_seed(0)
    if labels is not None:
        changes |= {"id2label": dict(enumerate(labels)), "label2id": {label: n for n, label in enumerate(labels)}}
    config = made.config(**changes)
    config.architectures = []  # the Auto classes ask it where a kind has two base models
    text = made.tokenizer is not None
    auto: Any = t.AutoModel
    if labels is not None:
        auto = t.AutoModelForSequenceClassification if text else t.AutoModelForImageClassification
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = auto.from_config(config)
    if labels is not None:  # as training leaves it: answers that differ from text to text
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    if made.tokenizer is not None:
        made.tokenizer().save(str(directory / "tokenizer.json"))
    elif made.processor is not None:
        made.processor().save_pretrained(directory)
    return directory
