"""Accuracy on minimal pairs while a model is trained, on a sample that all ranks score together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import digest_of, require_manifest
from pipelines.contract.workspace import DOCUMENTS
from pipelines.statistics.metrics import MINIMAL_PAIRS
from training.bert.heads import build_pretraining_model
from training.bert.huggingface import load_into
from training.engine.processes import Processes
from training.minimal_pairs.accuracies import Accuracies, accuracies
from training.minimal_pairs.heldout_pairs import HELDOUT, heldout_pairs
from training.minimal_pairs.pairs import MinimalPairs, read_pairs
from training.minimal_pairs.scorer import SentenceScorer, SentenceTokenizer, method_in_words
from training.settings.model import ModelConfig
from training.settings.pretraining import MinimalPairsConfig
from training.stages.pretraining import PretrainingInputs


class PairsDuringTraining:
    """Scores the weights of a run in fp32, as its exported encoder has them, whatever trains it."""

    metric = MINIMAL_PAIRS
    name = "minimal_pairs"

    def __init__(
        self,
        config: MinimalPairsConfig,
        pairs: MinimalPairs,
        tokenizer: SentenceTokenizer,
        model: ModelConfig,
        vocab_size: int,
        processes: Processes,
    ) -> None:
        """Tokenize the pairs.

        Raises:
            InputError: a sentence is longer than the model's positions, or has no token.
        """
        self.every_steps = config.every_steps
        self._config, self._pairs, self._mask_id = config, pairs, tokenizer.mask_id
        self._model, self._vocab_size, self._processes = model, vocab_size, processes
        self._sentences = tokenizer.tokenize_pairs(pairs, model.max_position_embeddings)
        self._unknown_tokens = tokenizer.unknown_tokens(self._sentences)
        self._method = method_in_words(model, config.method)
        self._found: Accuracies | None = None

    def measure(self, weights: Mapping[str, torch.Tensor]) -> float:
        """Accuracy of a model with these weights; each rank scores its part of the pairs."""
        model = build_pretraining_model(self._model, self._vocab_size)
        load_into(model, weights, "the weights of this run")
        processes, count = self._processes, len(self._pairs)
        own = np.arange(2 * count).reshape(2, count)[:, processes.rank :: processes.world_size].reshape(-1)
        scorer = SentenceScorer(model.to(processes.device), self._mask_id, self._config.method)
        scores = torch.zeros(2 * count, dtype=torch.float64, device=processes.device)
        if len(own):
            scores[own] = torch.from_numpy(scorer.score([self._sentences[row] for row in own])).to(processes.device)
        good_bad = processes.sum(scores).cpu().numpy()
        self._found = accuracies(self._pairs, good_bad[:count], good_bad[count:])
        return self._found.overall.accuracy

    def statistics(self) -> dict[str, Any]:
        """The last accuracies, as `pipelines.statistics.training.MinimalPairsStatistics`."""
        assert self._found is not None
        return {
            "data": self._config.data,
            "data_sha256": digest_of([self._pairs.good, self._pairs.bad, self._pairs.group]),
            "method": self._method,
            "unknown_tokens": self._unknown_tokens,
            **self._found.as_json(),
        }

    def in_words(self) -> str:
        """The last accuracies by field, or by group where the pairs have no fields."""
        assert self._found is not None
        overall = self._found.overall
        parts = self._found.fields or self._found.groups
        by_part = ", ".join(f"{name} {part.accuracy:.3f}" for name, part in parts.items())
        return (
            f"minimal pairs ({overall.pairs:,} pairs, {self._method}): {overall.accuracy:.4f} with a standard "
            f"error of {overall.standard_error:.4f}; {by_part}"
        )


def open_pairs(inputs: PretrainingInputs, processes: Processes) -> PairsDuringTraining:
    """The evaluation that `pretraining.minimal_pairs` describes.

    Raises:
        InputError: the pairs or the held-out documents cannot be read, or do not fit the model.
    """
    config = inputs.pretraining.minimal_pairs
    assert config is not None
    tokenizer = SentenceTokenizer(inputs.tokenizer_directory)
    most_tokens = inputs.model.max_position_embeddings
    if config.data == HELDOUT:
        directory = storage.join(inputs.workspace, DOCUMENTS)
        documents = require_manifest(directory, DOCUMENTS, f"clozeworks documents {inputs.recipe.path}")

        def fits(sentence: str) -> bool:
            return len(tokenizer.tokenize([sentence])[0].input_ids) <= most_tokens

        pairs = heldout_pairs(directory, documents, config.pairs_per_group, fits)
    else:
        pairs = read_pairs(config.data).sample_of_each_group(config.pairs_per_group)
    try:
        return PairsDuringTraining(config, pairs, tokenizer, inputs.model, inputs.vocab_size, processes)
    except InputError as error:
        raise InputError(f"{inputs.recipe.path}: pretraining.minimal_pairs: {error}") from error
