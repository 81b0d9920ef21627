"""Recipe section `[vocabulary]`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.contract.bounds import Bounded, Count, CountOrNone, UserPath
from pipelines.contract.recipe import ADDED, Section

RESERVED_TOKENS = {"compact": 5, "bert": 999}
"""Entries of a vocabulary before its alphabet, by layout."""


_ENTRIES = "letters need entries, and each entry is a row of the model's largest matrix"


_CHARACTERS = "Unicode has no more"


_ONLY_TRAINING = ("layout", "min_count", "alphabet_size")
"""Settings that mean nothing for a vocabulary that is brought."""


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
    origin: UserPath | None = Field(default=None, alias="from", json_schema_extra=ADDED)
    """Bring a vocabulary instead of training one: a vocab.txt, a tokenizer.json, a Hugging Face directory, another
    workspace, or a model of a registry (`models:/NAME@alias`). Its casing and its added tokens come with it."""
    extend: CountOrNone = Field(default=0, json_schema_extra=ADDED)
    """With `from`: add this many of the corpus's words, those that save the most pieces, into its `[unused]` entries
    first and then at the end."""

    @model_validator(mode="after")
    def _brought_is_not_trained(self) -> VocabularyConfig:
        if self.origin is None and self.extend:
            raise ValueError(
                f"extend = {self.extend} adds words to a vocabulary that is brought with from; set from, or raise size"
            )
        for name in _ONLY_TRAINING if self.origin is not None else ():
            if name in self.model_fields_set:
                raise ValueError(
                    f"{name} = {getattr(self, name)!r} is for training a vocabulary and means nothing with from = "
                    f"{self.origin!r}; remove one of the two"
                )
        return self

    @model_validator(mode="after")
    def _size_has_room(self) -> VocabularyConfig:
        if self.origin is None and self.size <= RESERVED_TOKENS[self.layout]:
            raise ValueError(
                f"size = {self.size} has no room besides the {RESERVED_TOKENS[self.layout]} reserved tokens of layout "
                f"= {self.layout!r}; raise it, or use layout = 'compact'"
            )
        return self


class VocabularyAdoption(Section):
    """What decides a vocabulary that is brought, besides the digest of the source and the documents."""

    extend: CountOrNone = 0
