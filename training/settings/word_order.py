"""Recipe section `[finetuning.word_order]`; light to import, without torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import model_validator

from pipelines.contract.bounds import Bounded, Seed
from pipelines.contract.recipe import Section

Rows = Annotated[int, Bounded(2, 100_000_000, "half are intact, half reordered, and all are held in memory")]
Words = Annotated[int, Bounded(3, 10_000, "a sentence needs several words to have an order, and is one row")]
Run = Annotated[int, Bounded(2, 10_000, "one word alone has no order")]


class WordOrderConfig(Section):
    """`[finetuning.word_order]`: the demonstration task, generated from held-out documents in CoLA's form."""

    max_train_examples: Rows = 4_000
    max_dev_examples: Rows = 1_000
    min_words: Words = 6
    max_words: Words = 40
    damaged_words: Run = 5
    """Number of consecutive words that are reordered."""
    seed: Seed = 12_345

    @model_validator(mode="after")
    def _words_fit(self) -> WordOrderConfig:
        if not self.damaged_words <= self.min_words <= self.max_words:
            raise ValueError(
                f"damaged_words = {self.damaged_words}, min_words = {self.min_words}, max_words = {self.max_words} "
                "must not decrease in this order"
            )
        return self
