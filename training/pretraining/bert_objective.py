"""BERT's objective: masked LM and next sentence, or masked LM only if the examples have no pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pipelines.contract import storage
from pipelines.contract.schemas import WHOLE_WORDS
from pipelines.contract.workspace import DOCUMENTS, VOCABULARY
from pipelines.results.verification import Verification, verify_stage
from pipelines.statistics.metrics import BERT_METRICS, MASKED_LM_METRICS, MLM_LOSS, Metric
from pipelines.statistics.preprocessing import ExamplesStatistics
from pipelines.statistics.training import Lineage
from training.alarms.bert_rules import POOLER_GRADIENT, BertAlarms
from training.alarms.reference_curve import read_reference
from training.bert.heads import BertForPreTraining, PreTrainingModel, PreTrainingOutput, build_pretraining_model
from training.bert.huggingface import huggingface_config, write_model
from training.bert.initial_weights import averaged, load_initial_weights
from training.bert.modeling import checkpoint_activations, compile_layers, initialize_weights, parameter_count
from training.bert.sizes import step_flops
from training.data.arrow_examples import ArrowExamples
from training.data.batches import MicroBatch, StepBatch
from training.engine.processes import Processes
from training.engine.training_engine import TrainingEngine
from training.kernels.losses import MLM_DENOMINATOR_EPS
from training.optimizers.schedule import Schedule
from training.pretraining.evaluations import measured, open_evaluations
from training.pretraining.fidelity import deviations, in_words
from training.pretraining.objective import Forward, Gather, Objective, Say, Tally
from training.pretraining.unigram_baseline import UnigramBaseline, baseline_warning, unigram_baseline
from training.resuming.progress import Progress
from training.stages.budgets import about_steps
from training.stages.pretraining import PretrainingInputs, shard_verification
from training.tokenizing.checks import require_same_tokenizer
from training.tokenizing.extension import new_entries

MASKED_LM_SUMS = ("mlm_loss", "mlm_correct", "masked")
_SUMS = (*MASKED_LM_SUMS, "nsp_loss", "nsp_correct", "pairs")


class BertObjective(Objective):
    """The objective of the paper; the examples determine whether there is a next-sentence task."""

    lm_loss: Metric = MLM_LOSS
    """The loss of the predicted tokens."""

    def __init__(self, inputs: PretrainingInputs, processes: Processes) -> None:
        self.inputs: PretrainingInputs = inputs
        self.settings, self.model = inputs.pretraining, inputs.model
        self.vocab_size = inputs.vocab_size
        self.lineage: tuple[Lineage, ...] = ()
        self.next_sentence = inputs.next_sentence
        self.sums = _SUMS
        self.evaluations = open_evaluations(inputs, processes)
        self.metrics = self.token_metrics() + tuple(each.metric for each in self.evaluations)
        self._deviations = in_words(deviations(inputs.model, inputs.pretraining, inputs.examples.config))
        with torch.device("meta"):
            model = self._new_model()
        self.num_parameters, self._architecture = parameter_count(model), model.architecture

    def token_metrics(self) -> tuple[Metric, ...]:
        """The metrics of `means`."""
        return BERT_METRICS if self.next_sentence else MASKED_LM_METRICS

    def check(self) -> None:
        if self.settings.reference is not None:
            read_reference(self.settings.reference)
        verify_stage(self.inputs.workspace, VOCABULARY, self.inputs.vocabulary)
        self._require_same_tokenizer(self.inputs.vocabulary_directory)
        if self.inputs.initial is not None:
            self._load_initial(self._new_model())

    def shard_verification(self) -> Verification:
        return shard_verification(self.inputs)

    def _new_model(self) -> PreTrainingModel:
        return build_pretraining_model(self.model, self.vocab_size, self.next_sentence)

    def build(self) -> PreTrainingModel:
        model = self._new_model()
        initialize_weights(model, self.model.initializer_range, self.settings.seed)
        self.lineage = self._load_initial(model)
        checkpoint_activations(model, self.settings.activation_checkpointing)
        if self.settings.compile:
            compile_layers(model)
        return model

    def _load_initial(self, model: PreTrainingModel) -> tuple[Lineage, ...]:
        """Copy the initial encoder into a model, if there is one; a checkpoint is loaded over it."""
        initial = self.inputs.initial
        if initial is None:
            return ()
        assert isinstance(model, BertForPreTraining), "refused by model_problem"
        added = new_entries(initial.directory, self.inputs.vocabulary_directory)
        changes = load_initial_weights(model, initial.directory, added)
        facts = {name: value for name, value in vars(changes).items() if value}
        return (Lineage(relation="initial_encoder", source=initial.source, digest=initial.digest, **facts),)

    def learn(self, engine: Forward, batch: MicroBatch, step: StepBatch) -> tuple[torch.Tensor, Tally]:
        output = output_of(engine, batch)
        loss = pretraining_loss(
            output.mlm_loss_sum, output.nsp_loss_sum, step.global_masked_tokens, step.global_sequences
        )
        return loss, self._tally(output, batch)

    def measure(self, engine: Forward, batch: MicroBatch) -> Tally:
        return self._tally(output_of(engine, batch), batch)

    def flops(self, step: StepBatch) -> float:
        tokens, squared, masked = step.global_tokens, step.global_squared_tokens, step.global_masked_tokens
        pairs = step.global_sequences if self.next_sentence else 0
        return step_flops(self.model, self.vocab_size, tokens, squared, masked, pairs)

    def evaluate(self, weights: Gather, progress: Progress) -> dict[str, float]:
        return measured(self.evaluations, weights, progress, len(self.settings.phases))

    def conclude(self, engine: TrainingEngine) -> Mapping[str, torch.Tensor]:
        weights, share = super().conclude(engine), self.settings.initial_encoder_share
        if share:
            initial = self._new_model()
            (lineage,) = self._load_initial(initial)
            weights = averaged(weights, dict(initial.named_parameters()), share, lineage.initialized)
            engine.load_full_precision_state(weights)
        return weights

    def _tally(self, output: PreTrainingOutput, batch: MicroBatch) -> Tally:
        sums = masked_lm_sums(output.mlm_loss_sum, output.mlm_correct, batch)
        if output.nsp_loss_sum is not None and output.nsp_correct is not None:
            pairs = batch.sequences.num_sequences
            sums |= {"nsp_loss": output.nsp_loss_sum, "nsp_correct": output.nsp_correct, "pairs": pairs}
        return Tally.of(self.sums, sums, output.mlm_loss_sum.device)

    def means(self, tally: Tally) -> dict[str, float]:
        metrics = masked_lm_means(tally)
        metrics["loss"] = metrics["mlm_loss"]
        if pairs := tally["pairs"]:
            nsp_loss = tally["nsp_loss"] / pairs
            metrics["loss"] = metrics["mlm_loss"] + nsp_loss
            metrics |= {"nsp_loss": nsp_loss, "nsp_accuracy": tally["nsp_correct"] / pairs}
        return metrics

    def alarms(self) -> BertAlarms:
        steps = about_steps(self.settings, self.inputs.examples)
        reference = self.settings.reference
        curve = read_reference(reference) if reference is not None else None
        return BertAlarms(round(sum(steps or ()) * Schedule.of(self.settings).warmup_share), curve, self.lm_loss)

    def introduction(self) -> str:
        lines = [f"deviations from BERT: {self._deviations}", *(record.in_words() for record in self.lineage)]
        is_whole = self.settings.masking in WHOLE_WORDS
        text = self.inputs.examples.statistics_as(ExamplesStatistics).text if is_whole else None
        if text is not None and text.has_only_single_pieces:
            lines.append(
                f"WARNING: pretraining.masking = {self.settings.masking!r} has no effect on whole words: "
                f"they have {text.pieces_per_word:.2f} pieces each, as in Chinese, where each character is a word; "
                "'dynamic' gives the same"
            )
        return "\n".join(lines)

    def tracked(self) -> Mapping[str, str]:
        return {"deviations_from_bert": self._deviations} | {
            record.relation: record.in_words() for record in self.lineage
        }

    def watched(self, model: nn.Module) -> Mapping[str, torch.Tensor]:
        assert isinstance(model, PreTrainingModel)
        pooler = model.bert.pooler
        return {} if pooler is None else {POOLER_GRADIENT: pooler.dense.weight}

    def export(self, directory: str, state: Mapping[str, torch.Tensor]) -> list[str]:
        config = huggingface_config(self.model, self.vocab_size, self._architecture)
        origin = [("started from", record.in_words()) for record in self.lineage]
        names = write_model(directory, state, config, self.inputs.vocabulary_directory, origin)
        self._require_same_tokenizer(directory)
        return names

    def statistics(self, _directory: str, progress: Progress, after: Mapping[str, float], say: Say) -> dict[str, Any]:
        baseline = self._unigram_baseline()
        loss = after.get(self.lm_loss.name)
        warning = baseline_warning(loss, baseline.loss, self.lm_loss.label) if loss is not None and baseline else None
        if warning:
            say(f"WARNING: {warning}")
        for evaluation in self.evaluations:
            say(evaluation.in_words())
        lineage = [*(record.to_json() for record in self.lineage), *progress.statistics.get("lineage", ())]
        return {
            **progress.statistics,
            "heldout_after": after,
            "parameters": self.num_parameters,
            "deviations": self._deviations,
            "unigram_baseline": baseline._asdict() if baseline else {},
            "warnings": [warning] if warning else [],
            **{each.name: each.statistics() for each in self.evaluations},
            **({"lineage": lineage} if lineage else {}),
        }

    def _require_same_tokenizer(self, directory: str) -> None:
        """Check that a directory's tokenizer gives the ids of the examples, on a sample of the corpus."""
        inputs = self.inputs
        documents = storage.join(inputs.workspace, DOCUMENTS)
        require_same_tokenizer(directory, inputs.vocabulary_directory, inputs.examples_directory, documents)

    def _unigram_baseline(self) -> UnigramBaseline | None:
        """Held-out scores of a model that knows only token frequencies."""
        inputs, phase = self.inputs, self.settings.phases[-1]
        if not inputs.examples.files_of("heldout", phase.examples_directory):
            return None
        train, heldout = (
            ArrowExamples(
                inputs.examples_directory,
                inputs.examples,
                split,
                phase.max_seq_length,
                phase.examples,
                inputs.example_copies,
            )
            for split in ("train", "heldout")
        )
        return unigram_baseline(train, heldout, self.settings.eval_examples, self.model.predicts_next_tokens)


def open_bert(inputs: PretrainingInputs, processes: Processes) -> BertObjective:
    """The objective of a pre-training run."""
    return BertObjective(inputs, processes)


def pretraining_loss(
    mlm_loss_sum: torch.Tensor, nsp_loss_sum: torch.Tensor | None, masked_tokens: int, sequences: int
) -> torch.Tensor:
    """Sum of both losses over a batch: sum / (n + 1e-5) for masked LM, the mean for next sentence if present.

    `masked_tokens` and `sequences` count the complete global batch, so that the contributions of ranks and
    micro-batches add up to the same loss for any partitioning.
    """
    mlm_loss = mlm_loss_sum / (masked_tokens + MLM_DENOMINATOR_EPS)
    return mlm_loss if nsp_loss_sum is None else mlm_loss + nsp_loss_sum / sequences


def masked_lm_sums(loss_sum: torch.Tensor, correct: torch.Tensor, batch: MicroBatch) -> dict[str, torch.Tensor | float]:
    """MASKED_LM_SUMS of a micro-batch."""
    return {"mlm_loss": loss_sum, "mlm_correct": correct, "masked": len(batch.masked_lm_ids_M)}


def masked_lm_means(tally: Tally) -> dict[str, float]:
    """Loss, accuracy and perplexity at masked tokens, from a tally with MASKED_LM_SUMS."""
    masked = tally["masked"]
    loss = tally["mlm_loss"] / (masked + MLM_DENOMINATOR_EPS)
    accuracy = tally["mlm_correct"] / max(masked, 1.0)
    return {"mlm_loss": loss, "mlm_accuracy": accuracy, "mlm_perplexity": math.exp(min(loss, 700.0))}


def output_of(engine: Forward, batch: MicroBatch) -> PreTrainingOutput:
    """Forward pass of a micro-batch."""
    output: PreTrainingOutput = engine(
        batch.sequences, batch.masked_lm_positions_M, batch.masked_lm_ids_M, batch.next_sentence_label_B
    )
    return output
