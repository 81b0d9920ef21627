"""Recipe section `[examples]`."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field, ValidationError, model_validator

from pipelines.contract.bounds import (
    MAX_SEQ_LENGTH_LIMIT,
    NAME_PATTERN,
    Bounded,
    MaskedShare,
    Probability,
    Seed,
    SequenceLength,
    Text,
    Weight,
)
from pipelines.contract.recipe import ADDED, Section
from pipelines.contract.workspace import length_directory

Passes = Annotated[int, Bounded(1, 10_000, "each pass writes the corpus again")]


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


class SourceShareConfig(Section):
    """`[[examples.sources]]`: a source that a set of examples reads."""

    name: Text
    """One of `documents.sources`."""
    weight: Weight | None = None
    """Share of the tokens, relative to the other sources of the list; None for all reads each document once a pass."""


Sources = tuple[SourceShareConfig, ...]
Masking = Literal["static", "dynamic", "whole_word", "dynamic_whole_word"]


class ExampleSetConfig(Section):
    """`[[examples.sets]]`: more examples of the same documents; what is not set is as in `[examples]`."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=64)]
    """`pretraining.phases.examples` selects the set by it."""
    sources: Sources = ()
    passes: Passes | None = None
    lengths: tuple[ExampleLengthConfig, ...] = ()
    masked_lm_prob: MaskedShare | None = None
    masking: Masking | None = None


class ExamplesConfig(Section):
    """`[examples]`: next-sentence pairs with masked tokens, as create_pretraining_data.py makes them."""

    seed: Seed = 12_345
    passes: Passes = 5
    """How many times each document is cut and masked (`dupe_factor` in the released code)."""
    lengths: tuple[ExampleLengthConfig, ...] = (
        ExampleLengthConfig(max_seq_length=128, max_predictions_per_seq=20),
        ExampleLengthConfig(max_seq_length=512, max_predictions_per_seq=80),
    )
    masked_lm_prob: MaskedShare = 0.15
    short_seq_prob: Probability = 0.1
    """Share of documents, drawn for each pass, that are cut to a random shorter length; for pairs only."""
    masking: Masking = "static"
    """`dynamic` leaves tokens unmasked, and training masks them differently each time (Liu et al., 2019, section 4.1);
    `whole_word` masks all pieces of a word together, like --do_whole_word_mask of the released code;
    `dynamic_whole_word` does so in training."""
    next_sentence: bool = True
    """False packs full sentences up to the maximum length, across documents, without a second segment and without
    the next-sentence task (Liu et al., 2019, section 4.2, "full-sentences")."""
    num_length_bins: Annotated[int, Bounded(1, 512, _BINS)] = 1
    """Number of sets of files for each maximum length, by equal steps of row length; for readers that pad."""
    sources: Sources = Field(default=(), json_schema_extra=ADDED)
    """The sources to read, with their weights; empty reads all, with the weights of `documents.sources`."""
    sets: tuple[ExampleSetConfig, ...] = Field(default=(), json_schema_extra=ADDED)
    """Further sets of examples, for phases that read another mix or mask otherwise."""

    def of_set(self, name: str | None) -> ExamplesConfig:
        """The settings of one set, as a section without sets; None is the section's own set."""
        if name is None:
            return self.model_copy(update={"sets": ()})
        one = next(each for each in self.sets if each.name == name)
        own = {key: value for key, value in one if key != "name" and value not in (None, ())}
        return ExamplesConfig.model_validate({**dict(self), "sets": (), **own})

    def parts(self) -> list[ExamplesPart]:
        """Every length of every set, the section's own first."""
        return [
            ExamplesPart(name, of_set, length)
            for name in (None, *(one.name for one in self.sets))
            for of_set in (self.of_set(name),)
            for length in of_set.lengths
        ]

    @model_validator(mode="after")
    def _sets_are_valid(self) -> ExamplesConfig:
        names = [one.name for one in self.sets]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise ValueError(f"two sets have name = {name!r}; give each its own")
            if name.startswith("length"):
                raise ValueError(
                    f"sets.{index}.name = {name!r}: names of directories of examples begin so; choose another"
                )
            # Checks what a set and the section give together, such as num_length_bins and the set's lengths.
            try:
                self.of_set(name)
            except ValidationError as error:
                message = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ValueError(f"sets.{index} ({name!r}): {message}") from error
        return self

    @model_validator(mode="after")
    def _sources_are_weighted_together(self) -> ExamplesConfig:
        names = [one.name for one in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"sources = {names}: give each source once")
        weights = [one.weight for one in self.sources]
        if any(weights) and None in weights:
            name = names[weights.index(None)]
            raise ValueError(f"sources: {name!r} has no weight, but another has; weight all or none")
        return self

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


class ExamplesPart(NamedTuple):
    """The examples of one maximum length of one set; `name` is None and `config` the section for its own set."""

    name: str | None
    config: ExamplesConfig
    length: ExampleLengthConfig

    @property
    def directory(self) -> str:
        """Of its files, below the stage's own."""
        return length_directory(self.length.max_seq_length, self.name)
