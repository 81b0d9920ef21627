"""Rates that an estimate uses: from our own benchmarks, or measured in a finished workspace.

The number of rows in a megabyte depends on the texts: articles are shorter than books, and the last row of a
document is rarely full. The defaults mix both as BERT's corpus did; a trial on a part of your own corpus is
better: `clozeworks run --only preprocess recipe.toml --set documents.sources.0.max_input_bytes=50_000_000`, then
`--from-workspace`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from pydantic import ValidationError

from flows.parameters.whole_recipe import WholeRecipe
from flows.running.timings import earlier_seconds
from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, read_manifest
from pipelines.contract.workspace import DOCUMENTS, EXAMPLES, METRICS_NAME, PRETRAINING, VOCABULARY
from pipelines.jobs.sizes import MEGABYTE, SHAPES_BASIS, LengthShape, default_shape
from pipelines.settings.examples import ExamplesConfig
from pipelines.settings.formats import FORMATS
from pipelines.statistics.preprocessing import (
    DocumentsStatistics,
    ExamplesStatistics,
    LengthStatistics,
    VocabularyStatistics,
)
from training.bert.sizes import predicted_tokens, step_flops
from training.settings.model import ModelConfig
from training.settings.pretraining import PretrainingConfig
from training.stages.budgets import about_steps

START_SECONDS = 4.0
"""CPU time of a job before its first byte: imports, and the runner."""

BENCHMARK = "make bench NAME=growth: the increase from 261 to 782 MB of novels, one worker, AMD EPYC at 2.6 GHz"
DOCUMENTS_SECONDS_PER_MEGABYTE = 0.0505
VOCABULARY_SECONDS_PER_MEGABYTE = 0.0102
EXAMPLES_SECONDS_PER_MILLION_TOKENS = 0.042
MERGES_SECONDS = 6.2
"""30,522 entries from a million distinct words (make bench NAME=vocabulary)."""
NEAR_DUPLICATES_SECONDS_PER_MEGABYTE = 1 / 8 - 1 / 18
MOJIBAKE_SECONDS_PER_MEGABYTE = 1 / 12 - 1 / 18
LANGUAGES_SECONDS_PER_MEGABYTE = 1 / 14.5 - 1 / 18
"""The last three: pipelines/README.md, MB/s of job 1 with and without."""

QUALITY_SECONDS_PER_MEGABYTE = {"c4": 0.05, "gopher": 0.044, "gopher-repetition": 0.081}
"""By set of rules that a chosen rule belongs to; pipelines/README.md."""
DECONTAMINATION_SECONDS_PER_MEGABYTE = 0.09

_DOCUMENT_OVERHEAD_BYTES = 24
_SENTENCE_OVERHEAD_BYTES = 4

CPU_FLOPS_PER_SECOND = 60e9
"""Of one core in training, fp32: 63 GFLOP/s with one thread (make bench NAME=training-step), 70 with two ranks and
large steps (training/README.md), half of that with other load on the machine."""
CPU_STEP_SECONDS = 0.022
"""Overhead of a step of two ranks besides its arithmetic: steps of 32 sequences of length 32, same machine."""
CPU_START_SECONDS = 20.0
CPU_BASIS = "60 GFLOP/s a core (AMD EPYC, otherwise idle), 22 ms a step, 20 s to start"


@dataclass(frozen=True)
class TrainingSpeed:
    """Speed of a finished pre-training run."""

    tokens_per_second: float
    flops_per_second: float


@dataclass(frozen=True)
class Rates:
    """CPU seconds and shapes of rows, each group with its source.

    Attributes:
        shapes: by maximum length, one pass.
        training: of the given workspace; None without one.
    """

    documents_seconds_per_megabyte: float
    vocabulary_seconds_per_megabyte: float
    examples_seconds_per_million_tokens: float
    seconds_basis: str
    shapes: Mapping[int, LengthShape]
    shapes_basis: str
    training: TrainingSpeed | None = None


def default_rates(whole: WholeRecipe) -> Rates:
    """Rates from our own benchmarks, for the settings of the recipe."""
    documents = whole.documents
    seconds = DOCUMENTS_SECONDS_PER_MEGABYTE
    seconds += NEAR_DUPLICATES_SECONDS_PER_MEGABYTE if documents.near_duplicates is not None else 0.0
    seconds += MOJIBAKE_SECONDS_PER_MEGABYTE if documents.cleaning.fix_mojibake else 0.0
    seconds += LANGUAGES_SECONDS_PER_MEGABYTE if documents.languages else 0.0
    seconds += DECONTAMINATION_SECONDS_PER_MEGABYTE if documents.decontamination is not None else 0.0
    if documents.quality is not None:
        seconds += sum(QUALITY_SECONDS_PER_MEGABYTE[name] for name in documents.quality.sets)
    seconds += max(FORMATS[source.format].seconds_per_megabyte for source in documents.sources)
    return Rates(
        seconds,
        VOCABULARY_SECONDS_PER_MEGABYTE,
        EXAMPLES_SECONDS_PER_MILLION_TOKENS,
        BENCHMARK,
        {
            part.length.max_seq_length: default_shape(whole.examples.next_sentence, part.length.max_seq_length)
            for part in whole.examples.parts()
        },
        SHAPES_BASIS,
    )


def measured_rates(whole: WholeRecipe, workspace: str) -> Rates:
    """The defaults, replaced where the workspace's manifests, timings and metrics have a value.

    Raises:
        InputError: the workspace has no finished documents and examples, or examples of another kind.
    """
    rates = default_rates(whole)
    manifests = {stage: read_manifest(storage.join(workspace, stage)) for stage in (DOCUMENTS, VOCABULARY, EXAMPLES)}
    documents, vocabulary, examples = (manifests[stage] for stage in (DOCUMENTS, VOCABULARY, EXAMPLES))
    if documents is None or vocabulary is None or examples is None:
        absent = ", ".join(stage for stage, manifest in manifests.items() if manifest is None)
        raise InputError(f"{workspace}: {absent} not finished; run clozeworks run --only preprocess on it first")
    made = ExamplesConfig.model_validate(examples.config)
    if made.next_sentence != whole.examples.next_sentence:
        raise InputError(
            f"{workspace}: its examples have next_sentence = {str(made.next_sentence).lower()}, unlike the recipe; "
            "this changes the shape of the rows: choose a workspace with the same setting"
        )
    megabytes = text_bytes(documents) / MEGABYTE
    statistics = examples.statistics_as(ExamplesStatistics)
    shapes = dict(rates.shapes)
    for length in shapes:
        if of_length := statistics.of_length(length):
            shapes[length] = _measured_shape(of_length, length, megabytes * made.passes)
    absent_lengths = sorted(set(shapes) - {int(length) for length in statistics.lengths})
    of_defaults = f"; length {', '.join(map(str, absent_lengths))}: {SHAPES_BASIS}" if absent_lengths else ""
    rates = replace(rates, shapes=shapes, shapes_basis=f"{workspace}, {megabytes:,.1f} MB of text{of_defaults}")
    rates = _with_measured_seconds(rates, workspace, documents, vocabulary, examples, megabytes)
    return replace(rates, training=_training_speed(workspace, vocabulary, examples))


def text_bytes(documents: Manifest) -> float:
    """UTF-8 bytes of the sentences in finished documents: the files without Arrow's offsets, ids and sources."""
    statistics = documents.statistics_as(DocumentsStatistics)
    size_bytes = sum(file.size_bytes for file in documents.files if file.name.endswith(".arrow"))
    overhead = _SENTENCE_OVERHEAD_BYTES * statistics.sentences
    overhead += _DOCUMENT_OVERHEAD_BYTES * statistics.documents_kept
    return max(float(statistics.characters), float(size_bytes - overhead))


def _measured_shape(statistics: LengthStatistics, max_seq_length: int, megabytes: float) -> LengthShape:
    """Squares are known up to the width of the histogram's bars; the last bar counts as full rows, as most are."""
    counts = {int(up_to): count for up_to, count in statistics.length_histogram.items()}
    edges = [0, *sorted(counts)]
    middles = {up_to: (above + 1 + up_to) / 2 for above, up_to in pairwise(edges)}
    middles[max_seq_length] = float(max_seq_length)
    squares = sum(count * middles[up_to] ** 2 for up_to, count in counts.items())
    rows = statistics.examples
    return LengthShape(rows / megabytes, statistics.mean_length, squares / max(rows, 1))


def _with_measured_seconds(
    rates: Rates, workspace: str, documents: Manifest, vocabulary: Manifest, examples: Manifest, megabytes: float
) -> Rates:
    """Wall-clock time of that machine with its workers, without the constant start-up time of a job."""
    found = {
        stage: earlier_seconds(workspace, stage, {stage: manifest})
        for stage, manifest in ((DOCUMENTS, documents), (VOCABULARY, vocabulary), (EXAMPLES, examples))
    }
    if None in found.values():
        return rates
    spent = {stage: max(0.0, (seconds or 0.0) - START_SECONDS) for stage, seconds in found.items()}
    million_tokens = (
        sum(values.tokens for values in examples.statistics_as(ExamplesStatistics).all_lengths().values()) / 1e6
    )
    return replace(
        rates,
        documents_seconds_per_megabyte=spent[DOCUMENTS] / megabytes,
        vocabulary_seconds_per_megabyte=spent[VOCABULARY] / megabytes,
        examples_seconds_per_million_tokens=spent[EXAMPLES] / max(million_tokens, 1e-9),
        seconds_basis=f"wall clock of {workspace}/timings.json, with its number of workers",
    )


def _training_speed(workspace: str, vocabulary: Manifest, examples: Manifest) -> TrainingSpeed | None:
    """Tokens/s over all progress lines of a finished run, and the corresponding FLOP/s."""
    directory = storage.join(workspace, PRETRAINING)
    manifest = read_manifest(directory)
    path = storage.join(directory, METRICS_NAME)
    if manifest is None or storage.file_size_bytes(path) is None:
        return None
    try:
        model = ModelConfig.model_validate(manifest.config["model"])
        pretraining = PretrainingConfig.model_validate(manifest.config["pretraining"])
        vocab_size = vocabulary.statistics_as(VocabularyStatistics).size
    except ValidationError:
        return None
    records = map(json.loads, storage.read_bytes(path).splitlines())
    lines = [line for line in records if "tokens_per_second" in line]
    made = examples.statistics_as(ExamplesStatistics)
    tokens = seconds = flops = 0.0
    phases, steps = pretraining.phases, about_steps(pretraining, examples)
    if steps is None and len(phases) > 1:
        return None  # by hours: nothing records which lines are of which phase
    ends = list(accumulate(steps or [0]))
    for line in lines:
        phase = next((phase for phase, end in zip(phases, ends, strict=True) if line["step"] <= end), phases[-1])
        statistics = made.of_length(phase.max_seq_length, phase.examples)
        new_tokens, tokens = line["tokens"] - tokens, line["tokens"]
        if statistics is None or new_tokens <= 0:
            return None
        shape = _measured_shape(statistics, phase.max_seq_length, 1.0)
        rows = new_tokens / shape.mean_length
        masked = new_tokens * (statistics.masked_share or examples.config["masked_lm_prob"])
        masked = predicted_tokens(model, new_tokens, rows, masked)
        flops += step_flops(model, vocab_size, new_tokens, rows * shape.mean_squared_length, masked, rows)
        seconds += new_tokens / line["tokens_per_second"]
    return TrainingSpeed(tokens / seconds, flops / seconds) if seconds else None
