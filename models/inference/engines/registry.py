"""Which engine runs a bundle: the first that takes it. A new engine is a file beside this one and a name here."""

from models.bundle import Bundle
from models.errors import BundleError
from models.inference.engines import folded, head, transformers
from models.inference.engines.engine import Engine, EngineKind

ENGINES: tuple[EngineKind, ...] = (folded, transformers, head)


def load_engine(bundle: Bundle) -> Engine:
    """Raises BundleError with the file's name, and what an engine's libraries raise."""
    for kind in ENGINES:
        if kind.takes(bundle):
            return kind.load(bundle)
    raise BundleError(f"{bundle.directory}: no engine runs {bundle.manifest.runtime} for {bundle.manifest.task}")
