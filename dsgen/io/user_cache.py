"""The folder in which dsgen remembers what it measured on this machine; nothing in it is needed."""

import os
from pathlib import Path


def user_cache() -> Path:
    """Return dsgen's folder below `$XDG_CACHE_HOME`, or below `~/.cache`; it may not exist.

    Raises `RuntimeError` where the user has no home folder.
    """
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(chosen) if os.path.isabs(chosen) else Path.home() / ".cache") / "dsgen"
