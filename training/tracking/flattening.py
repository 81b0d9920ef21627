"""Flattens nested settings and statistics for MLflow: one level of dotted names, and numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

NAME_LEFT_OUT = re.compile(r"[^\w\-./ ]")
"""Characters that MLflow rejects in a name."""


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to one level of dotted names; list items by index."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            flat |= flatten(item, f"{name}.")
        elif isinstance(item, (list, tuple)) and any(isinstance(part, Mapping) for part in item):
            flat |= flatten({str(index): part for index, part in enumerate(item)}, f"{name}.")
        else:
            flat[name] = item
    return flat


def numbers_of(statistics: Mapping[str, Any]) -> dict[str, float]:
    """The numeric leaves of statistics, under names that MLflow accepts."""
    return {
        NAME_LEFT_OUT.sub("_", name): float(value)
        for name, value in flatten(statistics).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }
