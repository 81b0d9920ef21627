"""Where local copies are kept unless a recipe says otherwise; the standard library only, for `clozeworks doctor`."""

from __future__ import annotations

import os


def default_directory() -> str:
    """The user's cache directory of this project: below XDG_CACHE_HOME, or `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(cache, "clozeworks", "staging")
