"""Recipe section `[examples]`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import model_validator

from pipelines.contract.bounds import MAX_SEQ_LENGTH_LIMIT, Bounded, MaskedShare, Probability, Seed, SequenceLength
from pipelines.contract.recipe import Section

_PASSES = "each pass writes the corpus again"


_BINS = "each is a set of files, and a row has no more lengths"


class ExampleLengthConfig(Section):
    """`[[examples.lengths]]`: one set of examples, cut to a maximum length."""

    max_seq_length: SequenceLength
    max_predictions_per_seq: Annotated[int, Bounded(1, MAX_SEQ_LENGTH_LIMIT, "a row has no more tokens")]

    @model_validator(mode="after")
    def _predictions_fit(self) -> ExampleLengthConfig:
        if self.max_predictions_per_seq > self.max_seq_length - 3:
            most = self.max_seq_length - 3
            raise ValueError(
                f"max_predictions_per_seq = {self.max_predictions_per_seq} exceeds the {most} tokens of a pair"
            )
        return self


class ExamplesConfig(Section):
    """`[examples]`: next-sentence pairs with masked tokens, as create_pretraining_data.py makes them."""

    seed: Seed = 12_345
    passes: Annotated[int, Bounded(1, 10_000, _PASSES)] = 5
    """How many times each document is cut and masked (`dupe_factor` in the released code)."""
    lengths: tuple[ExampleLengthConfig, ...] = (
        ExampleLengthConfig(max_seq_length=128, max_predictions_per_seq=20),
        ExampleLengthConfig(max_seq_length=512, max_predictions_per_seq=80),
    )
    masked_lm_prob: MaskedShare = 0.15
    short_seq_prob: Probability = 0.1
    """Share of documents, drawn for each pass, that are cut to a random shorter length; for pairs only."""
    masking: Literal["static", "dynamic", "whole_word", "dynamic_whole_word"] = "static"
    """`dynamic` leaves tokens unmasked, and training masks them differently each time (Liu et al., 2019, section 4.1);
    `whole_word` masks all pieces of a word together, like --do_whole_word_mask of the released code;
    `dynamic_whole_word` does so in training."""
    next_sentence: bool = True
    """False packs full sentences up to the maximum length, across documents, without a second segment and without
    the next-sentence task (Liu et al., 2019, section 4.2, "full-sentences")."""
    num_length_bins: Annotated[int, Bounded(1, 512, _BINS)] = 1
    """Number of sets of files for each maximum length, by equal steps of row length; for readers that pad."""

    @model_validator(mode="after")
    def _lengths_differ(self) -> ExamplesConfig:
        lengths = [length.max_seq_length for length in self.lengths]
        if not lengths or len(set(lengths)) < len(lengths):
            raise ValueError(f"lengths = {lengths}: give at least one, each max_seq_length once")
        if self.num_length_bins > min(lengths):
            raise ValueError(f"num_length_bins = {self.num_length_bins} is more than max_seq_length = {min(lengths)}")
        return self

    @model_validator(mode="after")
    def _settings_fit_the_task(self) -> ExamplesConfig:
        # Manifests record every setting, so reject a value only if it differs from the default.
        default = type(self).model_fields["short_seq_prob"].default
        if not self.next_sentence and self.short_seq_prob != default:
            raise ValueError(
                f"short_seq_prob = {self.short_seq_prob} has no meaning for next_sentence = false, which fills every "
                "row with full sentences; leave it out"
            )
        return self
