"""A linear head of ours on a frozen sentence encoder that is not in the bundle."""

from models.bundle import Bundle
from models.inference.engines.engine import Engine, from_torch
from models.inference.sentence_encoder import HEAD, FrozenBase, HeadLogits, load_head


def takes(bundle: Bundle) -> bool:
    """Runtime `head`."""
    return bundle.manifest.runtime == "head"


def load(bundle: Bundle) -> Engine:
    """The base is located, checked and loaded."""
    manifest = bundle.manifest
    assert manifest.base is not None  # load_bundle has checked both
    assert manifest.max_tokens is not None
    head = load_head(bundle.directory / HEAD, len(manifest.labels))
    return Engine(from_torch(HeadLogits(FrozenBase(manifest.base, manifest.max_tokens), head)))
