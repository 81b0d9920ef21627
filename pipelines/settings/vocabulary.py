"""Recipe section `[vocabulary]`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import model_validator

from pipelines.contract.bounds import Bounded, Count
from pipelines.contract.recipe import Section

RESERVED_TOKENS = {"compact": 5, "bert": 999}
"""Entries of a vocabulary before its alphabet, by layout."""


_ENTRIES = "letters need entries, and each entry is a row of the model's largest matrix"


_CHARACTERS = "Unicode has no more"


class VocabularyConfig(Section):
    """`[vocabulary]`: the WordPiece vocabulary and the casing of all that follows."""

    size: Annotated[int, Bounded(100, 1 << 24, _ENTRIES)] = 30_522
    layout: Literal["compact", "bert"] = "compact"
    """Ids of the special tokens: `compact` 0 to 4; `bert` as in the released uncased vocabulary, with [PAD] at 0,
    [UNK] [CLS] [SEP] [MASK] at 100 to 103, and 99 + 895 `[unused]` entries around them, all counted in `size`."""
    lowercase: bool = True
    strip_accents: bool | None = None
    """None follows BERT: strip when lower-casing."""
    min_count: Count = 2
    """Pairs rarer than this are never merged."""
    alphabet_size: Annotated[int, Bounded(1, 1_114_112, _CHARACTERS)] = 1000
    """How many characters, the most frequent ones, get an entry; words with others become [UNK]."""

    @model_validator(mode="after")
    def _size_has_room(self) -> VocabularyConfig:
        if self.size <= RESERVED_TOKENS[self.layout]:
            raise ValueError(
                f"size = {self.size} has no room besides the {RESERVED_TOKENS[self.layout]} reserved tokens of layout "
                f"= {self.layout!r}; raise it, or use layout = 'compact'"
            )
        return self
