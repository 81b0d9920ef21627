"""Checks across the sections of a recipe, made before the first stage starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from flows.parameters.ranks import World, distillation_steps, finetuning_batches, pretraining_steps, unsaid_ranks
from flows.parameters.tracking_config import TrackingConfig
from pipelines.contract.schemas import UNMASKED, WHOLE_WORDS
from pipelines.settings.documents import DocumentsConfig
from pipelines.settings.examples import ExamplesConfig
from training.settings.distillation import DistillationConfig
from training.settings.finetuning import FinetuningConfig
from training.settings.model import ModelConfig
from training.settings.pretraining import BERT_SHARES, PretrainingConfig, model_problem
from training.stages.pretraining import NO_PAIRS


class Sections(NamedTuple):
    """Valid sections of one recipe; `distillation` is None if the recipe has no such section.

    model: None if an initial encoder decides it that has not been fetched yet.
    """

    documents: DocumentsConfig
    examples: ExamplesConfig
    model: ModelConfig | None
    pretraining: PretrainingConfig
    distillation: DistillationConfig | None
    finetuning: FinetuningConfig
    tracking: TrackingConfig
    has_corpus: bool = True
    """False for a recipe that only fine-tunes."""


def contradiction(sections: Sections) -> str | None:
    """The first contradiction, with its remedy; None if the sections are consistent."""
    return next((problem for check in _CHECKS for problem in check(sections)), None)


def _pretraining(sections: Sections) -> Iterator[str]:
    pretraining = sections.pretraining
    if sections.model and (problem := model_problem(sections.model, pretraining)):
        yield problem
    for index, phase in enumerate(pretraining.phases):
        place = f"pretraining.phases.{index}"
        yield from _length_is_made(sections, place, phase.max_seq_length, phase.examples)
    model, has_pairs = sections.model, sections.has_corpus and sections.examples.next_sentence
    if model and model.predicts_next_tokens and has_pairs:
        yield NO_PAIRS


def _length_is_made(sections: Sections, place: str, max_seq_length: int, examples: str | None = None) -> Iterator[str]:
    names = [one.name for one in sections.examples.sets]
    if examples is not None and examples not in names:
        known = f"examples.sets has {', '.join(names)}" if names else "examples.sets is empty"
        yield f"{place}.examples = {examples!r}: {known}; add the set there, or remove this setting"
        return
    lengths = [length.max_seq_length for length in sections.examples.of_set(examples).lengths]
    if max_seq_length not in lengths:
        made_by = "examples.lengths" if examples is None else f"the set {examples!r} of examples.sets"
        yield (
            f"{place}.max_seq_length = {max_seq_length}: {made_by} makes only {', '.join(map(str, lengths))}; "
            "add this length there or use one of them"
        )


def _masking(sections: Sections) -> Iterator[str]:
    pretraining, distillation = sections.pretraining, sections.distillation
    for index, phase in enumerate(pretraining.phases):
        masking = sections.examples.of_set(phase.examples).masking
        if phase.masked_lm_prob is not None and pretraining.masking == "as_written" and masking not in UNMASKED:
            yield (
                f"pretraining.phases.{index}.masked_lm_prob = {phase.masked_lm_prob}, but the examples are masked "
                f"beforehand, with examples.masking = {masking!r}; set pretraining.masking = 'dynamic', or let the "
                "phase read one of examples.sets with this masked_lm_prob"
            )
        shares = pretraining.mask_shares
        if shares != BERT_SHARES and pretraining.masking == "as_written" and masking not in UNMASKED:
            yield (
                f"pretraining.mask_shares = {shares.mask:g} [MASK], {shares.random:g} random, but the examples are "
                f"masked beforehand, with examples.masking = {masking!r}; set pretraining.masking = 'dynamic'"
            )
        if pretraining.masking == "dynamic":
            yield from _masks_words(sections, "pretraining", phase.examples)
    if distillation and distillation.masking == "dynamic":
        yield from _masks_words(sections, "distillation", None)


def _masks_words(sections: Sections, name: str, examples: str | None) -> Iterator[str]:
    masking = sections.examples.of_set(examples).masking
    if masking in WHOLE_WORDS:
        yield (
            f"{name}.masking = 'dynamic' masks single tokens, but examples.masking = {masking!r}; set the "
            "former to 'dynamic_whole_word' or 'as_written', or the latter to 'dynamic'"
        )


def _distillation(sections: Sections) -> Iterator[str]:
    distillation, model = sections.distillation, sections.model
    if distillation is None:
        return
    yield from _length_is_made(sections, "distillation", distillation.max_seq_length)
    if distillation.teacher is not None or model is None:
        return
    if distillation.max_seq_length > model.max_position_embeddings:
        yield _too_long("distillation.max_seq_length", distillation.max_seq_length, model)
    layers = distillation.teacher_layers or (0,)
    if layers[-1] >= model.num_hidden_layers:
        yield (
            f"distillation.teacher_layers names layer {layers[-1]}, but model.num_hidden_layers = "
            f"{model.num_hidden_layers}; name layers from 0 to {model.num_hidden_layers - 1}"
        )


def _finetuning(sections: Sections) -> Iterator[str]:
    finetuning, model = sections.finetuning, sections.model
    for task in finetuning.tasks:
        key, fitting = finetuning.fitting_key(task), finetuning.fitting(task)
        # Another encoder has its own positions, but random weights always have this model's.
        is_own = finetuning.encoder is None or finetuning.compare_with_random
        if is_own and model and fitting.max_seq_length > model.max_position_embeddings:
            yield _too_long(f"{key}.max_seq_length", fitting.max_seq_length, model)
        if is_own and model and finetuning.family(task).section == "tagging":
            yield from _feature_layers(finetuning.tagging.feature_layers, model)
    for task in finetuning.tasks:
        if finetuning.family(task).preparer and not sections.documents.heldout_share:
            yield (
                f"finetuning.tasks names {task!r}, which is made from held-out documents, but "
                "documents.heldout_share = 0; raise the latter, or remove the task"
            )


def _feature_layers(layers: Sequence[int], model: ModelConfig) -> Iterator[str]:
    depth = model.num_hidden_layers
    for layer in layers:
        if not -depth - 1 <= layer <= depth:
            yield (
                f"finetuning.tagging.feature_layers names {layer}, but model.num_hidden_layers = {depth}; name layers "
                f"from 0 (embeddings) to {depth}, or from {-depth - 1} to -1"
            )


def _ranks(sections: Sections) -> Iterator[str]:
    pretraining, distillation, finetuning = sections.pretraining, sections.distillation, sections.finetuning
    cluster = pretraining.cluster
    if sections.has_corpus:
        yield from unsaid_ranks(cluster, "pretraining.ranks", pretraining.ranks)
        world = World.of("pretraining.ranks", pretraining.ranks, cluster)
        yield from pretraining_steps(pretraining, world)
        if distillation is not None:
            yield from distillation_steps(distillation, world)
    if finetuning.tasks:
        yield from unsaid_ranks(cluster, "finetuning.ranks", finetuning.ranks)
        yield from finetuning_batches(finetuning, World.of("finetuning.ranks", finetuning.ranks, cluster))


def _too_long(key: str, max_seq_length: int, model: ModelConfig) -> str:
    return (
        f"{key} = {max_seq_length} exceeds model.max_position_embeddings = {model.max_position_embeddings}; "
        "raise the latter or shorten the former"
    )


def _encoder_metric(sections: Sections) -> Iterator[str]:
    if sections.tracking.encoder_metric == "minimal_pairs" and sections.pretraining.minimal_pairs is None:
        yield (
            "tracking.encoder_metric = 'minimal_pairs', but no pairs are scored; set pretraining.minimal_pairs.data, "
            "or use encoder_metric = 'objective'"
        )


_CHECKS: tuple[Callable[[Sections], Iterator[str]], ...] = (
    _pretraining,
    _masking,
    _distillation,
    _finetuning,
    _ranks,
    _encoder_metric,
)
