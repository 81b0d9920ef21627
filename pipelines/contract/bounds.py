"""Types of settings: numbers with bounds and the reason for them, text, paths; cheap to import.

A bound catches a typing error (an extra digit, a wrong unit) before it costs hours, so it is well beyond any useful
value. `tests/faults/test_recipes.py` checks that every number of every section has both bounds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, get_args

import annotated_types
from pydantic import AfterValidator, StringConstraints
from pydantic.fields import FieldInfo

MAX_SEQ_LENGTH_LIMIT = 65_535
"""Positions are stored as uint16."""

_PATH_CHARACTERS = 4_096


@dataclass(frozen=True)
class Bounded(annotated_types.GroupedMetadata):
    """Both bounds of a number, and the reason, which completes "must be from low to high: ..." in a message."""

    low: float
    high: float
    reason: str
    above_low: bool = False
    """The lower bound itself is excluded."""
    below_high: bool = False

    def __iter__(self) -> Iterator[annotated_types.BaseMetadata]:
        yield annotated_types.Gt(self.low) if self.above_low else annotated_types.Ge(self.low)
        yield annotated_types.Lt(self.high) if self.below_high else annotated_types.Le(self.high)

    def __str__(self) -> str:
        if self.above_low or self.below_high:
            low = f"above {_shown(self.low)}" if self.above_low else f"at least {_shown(self.low)}"
            high = f"below {_shown(self.high)}" if self.below_high else f"at most {_shown(self.high)}"
            return f"{low} and {high}: {self.reason}"
        return f"from {_shown(self.low)} to {_shown(self.high)}: {self.reason}"


def _shown(bound: float) -> str:
    return f"{bound:,}".replace(",", "_") if isinstance(bound, int) else f"{bound:g}"


def bounds_of(field: FieldInfo) -> Bounded | None:
    """The bounds of a field's number, or of the numbers in its list."""
    return next(_bounds_in((*field.metadata, field.annotation)), None)


def _bounds_in(parts: tuple[Any, ...]) -> Iterator[Bounded]:
    for part in parts:
        if isinstance(part, Bounded):
            yield part
        else:
            yield from _bounds_in((*get_args(part), *getattr(part, "__metadata__", ())))


def expanded(path: str) -> str:
    """Replace `~` in a path by the home directory.

    Raises:
        ValueError: there is no such user.
    """
    result = os.path.expanduser(path)
    if result.startswith("~"):
        raise ValueError(f"no home directory is known for it; write ./{path} for a folder of that name")
    return result


Text = Annotated[str, StringConstraints(min_length=1, max_length=1_024)]
UserPath = Annotated[str, StringConstraints(min_length=1, max_length=_PATH_CHARACTERS), AfterValidator(expanded)]
"""A path, glob or URI as the user writes it: `~` is the home directory, in every setting that is a path."""

Seed = Annotated[int, Bounded(0, (1 << 63) - 1, "seeds are stored in 63 bits")]
MaskedShare = Annotated[float, Bounded(0.0, 0.5, "masked tokens are predicted from the others", above_low=True)]
Weight = Annotated[float, Bounded(0.0, 1e9, "it is relative to the other sources", above_low=True)]
NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_-]*$"
"""Names that become parts of file names."""
Probability = Annotated[float, Bounded(0.0, 1.0, "it is a fraction")]
SequenceLength = Annotated[
    int, Bounded(8, MAX_SEQ_LENGTH_LIMIT, "a row needs its special tokens and some text, and positions have 16 bits")
]
Count = Annotated[int, Bounded(1, 1_000_000_000, "it is a count, and no run reaches a billion")]
CountOrNone = Annotated[int, Bounded(0, 1_000_000_000, "it is a count, 0 means none, and no run reaches a billion")]
Processes = Annotated[int, Bounded(0, 4_096, "each is a process on this machine, and 0 chooses a number that fits")]
